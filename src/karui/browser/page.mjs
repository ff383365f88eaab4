// Runs a model with ONNX Runtime Web for the process that opened this page. Arrays come and go as raw bytes over
// the local server; everything else over the DevTools pipe.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array, float16: globalThis.Float16Array ?? Uint16Array,
};
const SAMPLE_MS = 0.5; // 100 steps of the clock: shorter calls are timed several in a row

let ort, session, names, feeds;

const karui = {
  async open({ bundle, provider, threads }) {
    ort = await import(bundle);
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = threads;
    const options = { executionProviders: [provider], extra: { session: { force_spinning_stop: "1" } } };
    session = await ort.InferenceSession.create("model.onnx", options);
    return { isolated: self.crossOriginIsolated, inputs: session.inputNames, outputs: session.outputNames };
  },

  // Fetches the inputs that the server holds: [{type, dims, offset, length}] in the order of the model's.
  async take(spec) {
    const raw = await (await fetch("input")).arrayBuffer();
    feeds = {};
    spec.forEach(({ type, dims, offset, length }, i) => {
      feeds[session.inputNames[i]] = new ort.Tensor(type, new ARRAYS[type](raw, offset, length), dims);
    });
  },

  async answer(spec) {
    await karui.take(spec);
    const outputs = await session.run(feeds);
    const told = [], parts = [];
    for (const name of session.outputNames) {
      const { type, dims, data } = outputs[name];
      told.push({ type, dims });
      parts.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    }
    const sent = await fetch("output", { method: "POST", body: new Blob(parts) });
    if (!sent.ok) throw new Error(`the answer could not be sent: ${sent.status}`);
    return told;
  },

  // Seconds of a call, one number a sample; a sample is the mean of as many calls as the clock needs.
  async timed(calls) {
    const samples = [];
    for (let done = 0; done < calls; ) {
      const start = performance.now();
      let each = 0, ms = 0;
      for (; ms < SAMPLE_MS; each++) {
        await session.run(feeds);
        ms = performance.now() - start;
      }
      samples.push(ms / each / 1000);
      done += each;
    }
    return samples;
  },
};
globalThis.karui = karui;

"""ONNX Runtime Web in a real Chromium: right numbers, its own clock, and no browser left behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.runtimes.torch_source import answers_of, cosine, rows_of, source_of
from torch import nn

from karui import host
from karui.artifact import Artifact, save_artifact
from karui.bench.candidate import Candidate
from karui.bench.machine import Conditions
from karui.browser import chromium, ort_web
from karui.browser.session import gpu
from karui.data import save_arrays
from karui.errors import KaruiError, MeasureFailed, MissingRuntime
from karui.numerics import parse_numerics
from karui.process import Limits, family
from karui.recipe import parse_named
from karui.runtimes import Ask, Built, Runtime, Source, load

ROWS = 1000
SOFTWARE = "Chromium has no GPU here, and a software adapter stands in"


class Net(nn.Module):
    """(n, 1, 12, 12) -> (n, 10)"""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32 * 9, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = nn.functional.max_pool2d(torch.relu(self.first(image)), 2)
        return self.head(nn.functional.max_pool2d(torch.relu(self.second(seen)), 2).flatten(1))


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> tuple[nn.Module, Source]:
    torch.manual_seed(0)
    rows = np.random.default_rng(0).standard_normal((ROWS, 1, 12, 12), dtype=np.float32)
    model = Net().eval()
    return model, source_of(model, rows, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(net, tmp_path_factory):
    """``made(numerics, runtime)``: the artifact's folder and what was told of it, built once."""
    known: dict[tuple[str, str], tuple[Path, Built]] = {}

    def get(numerics: str, runtime: str = "ort_web") -> tuple[Path, Built]:
        if (numerics, runtime) not in known:
            folder = tmp_path_factory.mktemp("artifact")
            asked = dataclasses.replace(net[1], numerics=parse_numerics(numerics))
            known[numerics, runtime] = folder, load(parse_named(runtime)).build(asked, folder)
        return known[numerics, runtime]

    return get


@pytest.fixture(scope="module")
def page(net, made):
    """``page(numerics, provider, threads)``: the artifact open in a browser, opened once."""
    known = {}

    def get(numerics: str, provider: str = "wasm", threads: int = 1):
        key = (numerics, provider, threads)
        if key not in known:
            runtime = load(parse_named(f"ort_web:provider={provider}"))
            known[key] = runtime.load(made(numerics)[0], net[1].signature, threads)
        return known[key]

    yield get
    for one in known.values():
        one.session.close()


def in_python(net, folder: Path) -> np.ndarray:
    return load(parse_named("onnxruntime")).load(folder, net[1].signature, 1)(rows_of(net[1], ROWS))[0]


def agreement(mine: np.ndarray, theirs: np.ndarray) -> float:
    return float((mine.argmax(1) == theirs.argmax(1)).mean())


@pytest.mark.gate
@pytest.mark.parametrize(("provider", "threads"), [("wasm", 1), ("wasm", 2), ("webgpu", 1)])
def test_fp32_differs_from_eager_by_less_than_a_ten_thousandth_and_agrees_with_python(
    net, made, page, provider, threads
):
    predict, source = page("fp32", provider, threads), net[1]
    assert predict.session.browser.version.startswith("Chrome")
    wanted = answers_of(*net)
    found = predict(rows_of(source, 100))[0]
    assert np.abs(found - wanted[:100]).max() <= 1e-4 * np.abs(wanted[:100]).max()
    count = 100 if provider == "webgpu" and not gpu() else ROWS  # in software it takes its time
    assert agreement(predict(rows_of(source, count))[0], in_python(net, made("fp32")[0])[:count]) >= 0.999


@pytest.mark.gate
@pytest.mark.parametrize("threads", [1, 2])
def test_int8_agrees_with_python_and_is_what_the_table_meant(net, made, page, threads):
    folder, built = made("int8")
    predict = page("int8", threads=threads)
    found = predict(rows_of(net[1], ROWS))[0]
    assert agreement(found, in_python(net, folder)) >= 0.999
    assert built.executed["int8_kernels"] == 3 and built.executed["int8_macs"] == 1.0
    assert cosine(found, built.reference[0]) > 0.9999
    assert not np.array_equal(found, answers_of(*net))
    np.testing.assert_array_equal(found[:7], predict(rows_of(net[1], 7))[0])


@pytest.mark.gate
def test_the_artifact_is_a_plain_onnx_file(net, made):
    assert [file.name for file in made("fp32")[0].iterdir()] == ["model.onnx"]
    for numerics in ("fp32", "int8"):
        code = (
            "import sys; sys.modules['karui'] = None\nimport onnx, onnxruntime\n"
            "onnx.checker.check_model(onnx.load('model.onnx'), full_check=True)\n"
            "onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])"
        )
        subprocess.run([sys.executable, "-c", code], cwd=made(numerics)[0], check=True)


def test_weights_that_are_mostly_zero_travel_packed(net, tmp_path):
    sparse = Net().eval()
    with torch.no_grad():
        for weight in (sparse.first.weight, sparse.second.weight, sparse.head.weight):
            weight.mul_(torch.rand_like(weight) > 0.9)
    source = source_of(sparse, net[1].probe["image"][:64], tmp_path)
    (tmp_path / "artifact").mkdir()
    runtime = load(parse_named("ort_web"))
    built = runtime.build(source, tmp_path / "artifact")
    assert built.executed["zeros_saved_bytes"] > 0.6 * 4 * sum(p.numel() for p in sparse.parameters())
    opened = runtime.load(tmp_path / "artifact", source.signature, 1)
    found, wanted = opened(rows_of(source, 64))[0], answers_of(sparse, source)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    opened.session.close()


def test_weights_of_half_precision_and_dynamic_int8_run_too(net, made, page):
    sizes = {n: (made(n)[0] / "model.onnx").stat().st_size for n in ("fp32", "fp16", "int8_dynamic")}
    assert sizes["fp16"] < 0.65 * sizes["fp32"] and sizes["int8_dynamic"] < sizes["fp32"]
    for numerics in ("fp16", "int8_dynamic"):
        found = page(numerics)(rows_of(net[1], 100))[0]
        assert cosine(found, answers_of(*net)[:100]) > 0.999


@pytest.mark.gate
@pytest.mark.skipif(len(host.cpus()) < 2, reason="one CPU only")
def test_two_threads_are_two_and_one_is_one(net, page):
    rows = rows_of(net[1], 256)

    def by_workers(threads: int) -> float:
        """What the page's workers computed, as a share of what the busiest thread did."""
        predict = page("fp32", threads=threads)
        predict.timed(rows, 10)
        before = spent(predict)
        predict.timed(rows, 60)
        worked = {key: ticks - before.get(key, 0) for key, ticks in spent(predict).items()}
        workers = sum(ticks for (name, _), ticks in worked.items() if name.startswith("DedicatedWorker"))
        return workers / max(worked.values())

    def spent(predict) -> dict[tuple[str, str], int]:
        """CPU ticks of each thread of the browser, by its name and number."""
        found = {}
        for pid in family(predict.session.browser.process.pid):
            for path in Path(f"/proc/{pid}/task").glob("*/stat"):
                name, _, rest = path.read_text().partition("(")[2].rpartition(")")
                user, system = rest.split()[11:13]
                found[name, path.parent.name] = int(user) + int(system)
        return found

    assert by_workers(1) == 0
    assert by_workers(2) > 0.3


@pytest.mark.gate
def test_times_are_taken_in_the_page_and_not_on_the_way_to_it(net, page):
    """A call is much shorter than the way; several go into a sample, so that the clock's step is nothing."""
    predict, rows = page("fp32"), rows_of(net[1], 1)
    predict.timed(rows, 200)
    start = time.perf_counter()
    samples = predict.timed(rows, 200)
    each = (time.perf_counter() - start) / len(samples)
    assert each >= 0.49e-3  # a sample lasts 100 steps of 5 us, or nearly
    assert all(sample > 0 for sample in samples)
    start = time.perf_counter()
    for _ in range(50):
        predict(rows)
    there_and_back = (time.perf_counter() - start) / 50
    assert sorted(samples)[len(samples) // 2] < 0.5 * there_and_back


def test_what_was_asked_in_between_does_not_change_what_is_timed(net, page):
    predict, few, many = page("fp32"), rows_of(net[1], 1), rows_of(net[1], 256)
    short = np.median(predict.timed(few, 20))
    predict(many)
    assert np.median(predict.timed(few, 20)) < 20 * short
    assert np.median(predict.timed(many, 5)) > 3 * short


def artifact_of(net, made, tmp_path: Path, recipe: str = "fp32@ort_web") -> Artifact:
    folder = made("fp32")[0]
    save_arrays({name: rows[:8] for name, rows in net[1].probe.items()}, tmp_path / "data" / "timing")
    return save_artifact(Artifact(folder, recipe, "ort_web", net[1].signature))


@pytest.fixture
def artifact(net, made, tmp_path):
    yield artifact_of(net, made, tmp_path)
    (made("fp32")[0] / "manifest.json").unlink()


def browsers(pid: int) -> list[int]:
    return [one for one in family(pid) if "chrom" in Path(f"/proc/{one}/comm").read_text()]


def gone(pids: list[int]) -> bool:
    """Whether all have ended: none runs, and none waits to be reaped by us."""

    def state(pid: int) -> str:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return "gone"
        return "gone" if fields[0] == "Z" and int(fields[1]) != os.getpid() else fields[0]

    until = time.monotonic() + 10
    while time.monotonic() < until:
        if all(state(pid) == "gone" for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.gate
@pytest.mark.parametrize("how", ["closed", "killed", "parent killed"])
def test_no_browser_outlives_its_worker(artifact, tmp_path, how):
    if how == "parent killed":
        code = (
            "import sys, time\nfrom pathlib import Path\nfrom karui.artifact import load_artifact\n"
            "from karui.bench.candidate import Candidate\nfrom karui.bench.machine import Conditions\n"
            "one = Candidate(load_artifact(sys.argv[1]), *map(Path, sys.argv[2:]), Conditions())\n"
            "one.load()\nprint(one.child.process.pid, flush=True)\ntime.sleep(60)"
        )
        words = [sys.executable, "-c", code, artifact.folder, tmp_path / "data", tmp_path / "home"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
            worker = int(parent.stdout.readline())
            running = [worker, *browsers(worker)]
            parent.kill()
    else:
        one = Candidate(
            artifact, tmp_path / "data", tmp_path / "home", Conditions(limits=Limits(seconds=60.0))
        )
        one.load()
        worker = one.child.process.pid
        running = browsers(worker)
        if how == "killed":
            os.kill(worker, signal.SIGKILL)
        one.close()
    assert len(running) > 3
    assert gone(running)


@pytest.mark.gate
def test_a_worker_times_the_browser_on_the_cpus_it_was_given(artifact, tmp_path):
    one = Candidate(artifact, tmp_path / "data", tmp_path / "home", Conditions(limits=Limits(seconds=60.0)))
    one.load()
    cpu = host.cpus()[-1]
    one.pin([cpu])
    assert {frozenset(os.sched_getaffinity(pid)) for pid in browsers(one.child.process.pid)} == {
        frozenset([cpu])
    }
    one.warm()
    found = one.time(0.005)
    assert 0 < found["mean_s"] < 0.05 and found["samples_s"]
    assert one.peak_memory_bytes > 100_000_000  # the browser's is in it
    one.close()


@pytest.mark.gate
def test_a_software_adapter_is_told_and_never_timed(net, made, tmp_path):
    if gpu():
        pytest.skip("a GPU is here: it is timed")
    assert load(parse_named("ort_web:provider=webgpu")).stands_in() == SOFTWARE
    assert load(parse_named("ort_web")).stands_in() == ""
    artifact = artifact_of(net, made, tmp_path, "fp32@ort_web:provider=webgpu")
    one = Candidate(artifact, tmp_path / "data", tmp_path / "home", Conditions(limits=Limits(seconds=60.0)))
    one.load()
    (made("fp32")[0] / "manifest.json").unlink()
    assert one.stands_in == SOFTWARE
    with pytest.raises(MeasureFailed, match="not measured on this host"):
        one.warm()
    one.close()


def test_a_model_that_the_browser_cannot_open_says_why(net, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(KaruiError) as error:
        load(parse_named("ort_web")).load(tmp_path, net[1].signature, 1)
    assert "protobuf" in error.value.why


def test_only_what_the_page_needs_is_served_and_only_to_it(net, page):
    shelf, url = page("fp32").session.server.shelf, page("fp32").session.server.url

    def status(path: str) -> int:
        script = f"fetch({path!r}).then((reply) => reply.status)"
        return page("fp32").session.tab.run(script)

    assert set(shelf.files) == {"page.html", "page.mjs", "model.onnx", *ort_web.FILES["wasm"]}
    assert status("model.onnx") == 200
    assert status("../model.onnx") == status("../wrong/model.onnx") == status("manifest.json") == 404
    assert status(url + "..%2f..%2fetc%2fpasswd") == 404
    elsewhere = "fetch('http://example.com/').then(() => 'reached', (error) => 'no network')"
    assert page("fp32").session.tab.run(elsewhere) == "no network"


@pytest.mark.gate
def test_what_is_missing_is_named_with_its_remedy(net, made, monkeypatch, tmp_path):
    runtime: Runtime = load(parse_named("ort_web"))
    assert runtime.lacks() == ""
    monkeypatch.setenv(chromium.WHERE, str(tmp_path / "none"))
    assert runtime.lacks() == chromium.REMEDY
    with pytest.raises(MissingRuntime, match="no Chromium") as error:
        runtime.load(made("fp32")[0], net[1].signature, 1)
    assert "apt-get install chromium" in error.value.fix
    monkeypatch.delenv(chromium.WHERE)
    monkeypatch.setenv(ort_web.WHERE, str(tmp_path))
    assert "npm install" in runtime.lacks() and "onnxruntime-web@1.30.0" in runtime.lacks()
    with pytest.raises(MissingRuntime, match="onnxruntime-web is not installed"):
        runtime.load(made("fp32")[0], net[1].signature, 1)


def test_the_package_is_found_upwards_of_the_working_directory_and_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.delenv(ort_web.WHERE, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inner = tmp_path / "project" / "deep"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert ort_web.find_ort_web() is None
    for home in (tmp_path / "cache" / "karui", tmp_path / "project"):
        folder = home / ort_web.DIST
        folder.mkdir(parents=True)
        for name in (name for names in ort_web.FILES.values() for name in names):
            (folder / name).touch()
        assert ort_web.find_ort_web() == folder
    assert ort_web.version_of(folder) == "unknown"


def asked(numerics: str, provider: str = "wasm", **facts) -> str | None:
    ask = Ask(parse_numerics(numerics), **({"layers": {"Linear": 1}} | facts))
    return load(parse_named(f"ort_web:provider={provider}")).refuses(ask)


def test_what_is_refused_before_it_costs_a_trial():
    assert [asked(p) for p in ("fp32", "fp16", "int8", "int8_dynamic", "int8[a=fp32]")] == [None] * 5
    assert "bfloat16" in asked("bf16") and "calibration" in asked("int8", calibrated=False)
    assert asked("fp32", "webgpu") is None and asked("fp16", "webgpu") is None
    assert "no INT8 kernels" in asked("int8", "webgpu") and "no INT8 kernels" in asked(
        "int8_dynamic", "webgpu"
    )
    assert "quantizer=onnxruntime" in asked("int8", form="onnx")

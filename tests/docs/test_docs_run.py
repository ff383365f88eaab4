"""Code and commands of the pages are run, on a small network and with few rounds."""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import sys

import numpy as np
import pages
import pytest
import torch

import karui
from karui import api, runtimes, techniques
from karui.artifact import read_signature
from karui.bench import gate
from karui.bench.rounds import Pace
from karui.cli.main import main
from karui.data import open_arrays
from karui.numerics import Numerics
from karui.optimize import Settings, locked

README = pages.READMES[0]
DOCS = pages.ROOT / "docs"
PACE = Pace(least=3, most=3, seconds=1.0)
RECIPES = ("fp32@onnxruntime",)
DATA = """
from pathlib import Path
import numpy as np
stored = np.load(Path(__file__).with_name("data.npz"))
validation = stored["images"], stored["labels"]
"""


def names():
    """What the pages' code leaves to the reader: a network, data, an input."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 36, 5),
    ).eval()
    images = torch.randn(500, 1, 8, 8)
    with torch.no_grad():
        labels = net(images).argmax(1)
    batches = [(images[i : i + 100], labels[i : i + 100]) for i in range(0, 500, 100)]
    return {"net": net, "train_batches": batches[:1], "validation_batches": batches[1:], "x": images[:4]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The README's example, run; the names it leaves, and the run folder."""
    folder, code = tmp_path_factory.mktemp("readme"), names()
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(
            api, "Settings", lambda command: Settings(RECIPES, pace=PACE, final=PACE, command=command)
        )
        for block in pages.blocks(README, "python"):
            exec(compile(block, "README.md", "exec"), code)
    return code, folder / code["result"].folder


def test_readme_example(run, capsys):
    code, folder = run
    assert code["result"].facts["command"] == "karui.optimize(...)"
    assert {t["recipe"] for t in code["result"].facts["trials"]} == {"fp32@torch_eager", *RECIPES}
    with torch.no_grad():
        assert torch.allclose(code["predict"](code["x"]), code["net"](code["x"]), atol=1e-5)
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    "block", [b for page in (DOCS / "tasks.md", DOCS / "recipes.md") for b in pages.blocks(page, "python")]
)
def test_other_examples(block):
    exec(compile(block, "docs", "exec"), names())


def test_technique_example(capsys):
    if "fold_norm" not in techniques.names():
        pytest.skip("fold_norm is not here yet")
    code = names()
    for block in pages.blocks(DOCS / "techniques" / "fold_norm.md", "python"):
        exec(compile(block, "fold_norm.md", "exec"), code)
    assert code["applied"].touched == ("0",)


@pytest.mark.parametrize("name", ["round_weights", "equalize", "correct_bias", "smooth"])
def test_examples_of_steps_before_int8(name, capsys):
    code = names()
    for block in pages.blocks(DOCS / "techniques" / f"{name}.md", "python"):
        exec(compile(block, name, "exec"), code)
    assert set(code["applied"].touched) == {"0", "4"}


def test_examples_of_pruning(capsys, tmp_path):
    with contextlib.chdir(tmp_path):
        code = names()
        for block in pages.blocks(DOCS / "techniques" / "prune_channels.md", "python"):
            exec(compile(block, "prune_channels.md", "exec"), code)
    with torch.no_grad():
        assert torch.equal(code["same"], code["pruned"].model(code["x"]))


def test_examples_of_training_with_rounding(capsys, tmp_path):
    pytest.importorskip("lightning_fabric")
    with contextlib.chdir(tmp_path):
        code = names()
        for block in pages.blocks(DOCS / "techniques" / "quantize_aware.md", "python"):
            exec(compile(block, "quantize_aware.md", "exec"), code)
        taken = code["karui"].apply("quantize_aware:ranges=learned", code["trained"], inputs=code["x"])
    assert len(taken.ranges) == len(code["aware"].ranges()) and type(taken.model) is type(code["net"])


@pytest.mark.parametrize("name", ["finetune", "distill"])
def test_examples_of_training(name, capsys):
    pytest.importorskip("lightning_fabric")
    code = names()
    for block in pages.blocks(DOCS / "techniques" / f"{name}.md", "python"):
        exec(compile(block, name, "exec"), code)
    assert code["narrow"][0].out_channels == 2 and code["found"].facts["steps"] == 20


@pytest.mark.parametrize("page", sorted((DOCS / "runtimes").glob("*.md")), ids=lambda page: page.stem)
def test_examples_of_runtimes_are_python(page):
    assert [compile(block, page.name, "exec") for block in pages.blocks(page, "python")]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("runtime", ["torch_eager", "torchscript", "onnxruntime", "openvino"])
def test_files_open_without_karui(run, runtime, tmp_path):
    """The snippet of the page, on a file as karui writes it, gives what the model gives."""
    pytest.importorskip(runtime if runtime in ("onnxruntime", "openvino") else "torch")
    code, folder = run
    build(runtime, folder, tmp_path)
    if runtime == "openvino":  # both forms that its page opens
        (tmp_path / "model.xml.gz").write_bytes(gzip.compress((tmp_path / "model.xml").read_bytes()))
    vanilla = {"x": code["x"] if runtime.startswith("torch") else code["x"].numpy()}
    with contextlib.chdir(tmp_path):
        for block in pages.blocks(DOCS / "runtimes" / f"{runtime}.md", "python"):
            exec(compile(block, runtime, "exec"), vanilla)
    answer = vanilla["outputs"][0] if "outputs" in vanilla else vanilla["y"]
    with torch.no_grad():
        assert np.allclose(np.asarray(answer), code["net"](code["x"]).numpy(), atol=1e-4)


def build(runtime, folder, to):
    manifest = json.loads((folder / "trials" / "torch_eager-fp32" / "artifact" / "manifest.json").read_text())
    runtimes.find(runtime)().build(source_of(folder, manifest), to)


def source_of(folder, manifest):
    probe = {key: np.array(rows) for key, rows in open_arrays(folder / "data" / "probe").items()}
    return runtimes.Source(
        folder / "model" / "fp32", read_signature(manifest["signature"]), Numerics(), probe, probe
    )


def test_contributed_runtime(run, tmp_path, monkeypatch):
    code, folder = run
    pytest.importorskip("onnx.reference")
    path = tmp_path / "onnx_reference.py"
    path.write_text(pages.blocks(pages.ROOT / "CONTRIBUTING.md", "python")[0])
    monkeypatch.setattr(runtimes, "__path__", [*runtimes.__path__, str(tmp_path)])
    assert "onnx_reference" in runtimes.names()
    runtime = runtimes.load(runtimes.Named("onnx_reference"))
    assert runtime.refuses(runtimes.Ask(Numerics("int8"))) and not runtime.refuses(runtimes.Ask(Numerics()))
    manifest = json.loads((folder / "trials" / "torch_eager-fp32" / "artifact" / "manifest.json").read_text())
    source, built = source_of(folder, manifest), tmp_path / "built"
    built.mkdir()
    runtime.build(source, built)
    (answer,) = runtime.load(built, source.signature, 1)({"input": code["x"].numpy()})
    with torch.no_grad():
        assert np.allclose(answer, code["net"](code["x"]).numpy(), atol=1e-4)
    sys.modules.pop("karui.runtimes.onnx_reference")


def test_doctor_and_show_and_report(run, capsys, tmp_path):
    _, folder = run
    assert main(["doctor"]) == 0
    assert "onnxruntime" in capsys.readouterr().out
    assert main(["show", str(folder)]) == 0
    assert "fp32@onnxruntime" in capsys.readouterr().out
    assert main(["show", str(folder / "trials" / "onnxruntime-fp32" / "artifact"), "--json"]) == 0
    capsys.readouterr()
    assert main(["report", str(folder), "--to", str(tmp_path / "public")]) == 0


def test_commands_of_the_gate(run, capsys, tmp_path, monkeypatch):
    """Those of the page, in few openings; the small run's artifact is FP32, so it is timed beside eager."""
    code, folder = run
    artifact, eager = (
        folder / "trials" / name / "artifact" for name in ("onnxruntime-fp32", "torch_eager-fp32")
    )
    images, labels = (torch.cat(part).numpy() for part in zip(*code["validation_batches"]))
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    (tmp_path / "data.py").write_text(DATA)
    monkeypatch.setattr(locked, "MOST_OPENINGS", 2)
    monkeypatch.setattr(gate, "LOOKS", (2,))
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = (DOCS / "verification.md").read_text().partition("## In CI")[2]
    page = tmp_path / "page.md"
    page.write_text(text.replace(f"karui-runs/NAME/trials/{artifact.parent.name}/artifact", str(eager)))
    with contextlib.chdir(tmp_path):
        for words in pages.commands(page):
            words = [str(artifact) if word == "karui-runs/NAME" else word for word in words]
            quick = {
                "lock": ["--max-slower", "100%"],
                "verify": [] if "--beside" in words else ["--no-speed"],
            }
            assert main([*words[1:], *quick.get(words[1], [])]) == 0, words
            said = capsys.readouterr().out
    assert json.loads(said)["verdict"] == "as locked"
    sys.modules.pop("data")


def test_every_key_is_documented(run):
    _, folder = run
    text = (DOCS / "run-folder.md").read_text()
    result = json.loads((folder / "result.json").read_text())
    manifest = json.loads((folder / "trials" / "torch_eager-fp32" / "artifact" / "manifest.json").read_text())
    free = {"versions", "executed", "files", "splits", "tree"}  # their keys are names, not ours
    wanted = {*pages.keys(result, free), *pages.keys(manifest, free | {"host"})}
    assert sorted(key for key in wanted if f"`{key}`" not in text) == []


def test_every_file_is_documented(run):
    _, folder = run
    text = (DOCS / "run-folder.md").read_text()
    assert sorted(path.name for path in folder.iterdir() if path.name not in text) == []


def test_verbs_are_not_hidden_by_rooms_of_the_same_name():
    code = (
        "import karui; from karui.optimize import Settings; from karui.bench.rounds import Pace; karui.load; "
    )
    code += "assert callable(karui.optimize) and callable(karui.optimize) and callable(karui.bench)"
    subprocess.run([sys.executable, "-c", code], check=True)


class Linear(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5))


def test_a_model_that_stays_in_files(tmp_path, monkeypatch):
    """Its weights are there in bfloat16."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net, x = Linear().eval(), torch.randn(64, 64)
    (tmp_path / "weights").mkdir()
    state = {name: value.bfloat16() for name, value in net.state_dict().items()}
    save_file(state, tmp_path / "weights" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    code = {"karui": karui, "Net": Linear, "x": x}
    (block,) = [one for one in pages.blocks(DOCS / "quantization.md", "python") if "blank" in one]
    exec(compile(block, "quantization.md", "exec"), code)
    answers = karui.load(code["made"]["artifact"])(x)
    assert torch.nn.functional.cosine_similarity(answers, net(x)).min() > 0.999

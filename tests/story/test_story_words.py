"""Words, files and folders that cannot be worked with: exit code 2, what / why / try, nothing touched."""

from __future__ import annotations

import gc
import json
import zipfile

import jobs
import pytest
import torch
from torch import nn

import karui
from karui.errors import KaruiError, UsageError

pytestmark = pytest.mark.gate


@pytest.fixture
def task_file(tmp_path):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE)
    return "job.py:task"


def says(said, *words):
    """Usage error, in words, with no traceback and nothing on standard output."""
    assert said.code == 2, said.err
    assert "Traceback" not in said.err
    assert "internal error" not in said.err
    assert said.out.replace("a print of the user's own\n", "") == ""
    for word in words:
        assert word in said.err, said.err


WRONG_WORDS = [
    (["--max-drop", "banana"], "'banana' is not a drop"),
    (["--max-drop", "-1"], "not negative"),
    (["--max-drop", "nan"], "'nan' is not a drop"),
    (["--max-latency", "fast"], "'fast' is not a time"),
    (["--max-size", "huge"], "'huge' is not a size"),
    (["--timeout", "soon"], "'soon' is not a time"),
    (["--batch", "0"], "batch must be at least 1"),
    (["--threads", "-2"], "threads must be at least 1"),
    (["--target", "moon"], "no target 'moon'"),
    (["--target", "moon", "--recipe", "fp32@onnxruntime"], "no target 'moon'"),
    (["--runtimes", "onyx"], "no runtime 'onyx'"),
    (["--runtimes", "torch_eager", "--recipe", "int8@onnxruntime"], "no recipe is left"),
    (["--recipe", "int8"], "names no runtime"),
    (["--recipe", "int7@onnxruntime"], "no precision 'int7'"),
    (["--recipe", "fp32@onyx"], "no runtime 'onyx'"),
    (["--recipe", "fp32@onnxruntime:opset"], "is not option=value"),
    (["--recipe", "fp32@onnxruntime:colour=red"], "no option 'colour'"),
    (["--recipe", "int8@openvino:compress_xml=maybe"], "it takes true or false"),
    (["--recipe", 'prune_weights:pattern="4x0" + fp32@onnxruntime'], "no pattern of zeros '4x0'"),
    (["--recipe", "prune_weights:sparsity=1.5 + fp32@onnxruntime"], "must lie between 0 and 1"),
    (["--recipe", "fp32[head=@onnxruntime"], "names no runtime"),
    (["--recipe", "int8@torch_eager"], "no recipe can be tried"),
    (["--score", "beauty"], "no score 'beauty'"),
    (["--inputs", "1xcat"], "cannot read the shape"),
    (["--select", "nowhere.py:data"], "there is no file nowhere.py"),
]


@pytest.mark.parametrize(("words", "answer"), WRONG_WORDS, ids=[" ".join(words) for words, _ in WRONG_WORDS])
def test_wrong_words(cli, task_file, tmp_path, words, answer):
    says(cli("optimize", task_file, "--out", "run", *words), answer)
    assert not (tmp_path / "run").exists()  # not even made: run.json stands only beside a run that may go on


def test_argparse_words_end_with_2_too(cli):
    for words in (
        ["fly"],
        ["optimize"],
        ["optimize", "x", "--pace", "slow"],
        ["optimize", "x", "--batch", "two"],
    ):
        said = cli(*words)
        assert (said.code, said.out) == (2, "")


SCRIPTS = {
    "syntax error": ("import karui\n\ndef task(:\n    pass\n", ["SyntaxError", "job.py, line 3"]),
    "raises": ("import karui\nx = 1\ny = x / 0\n", ["ZeroDivisionError", "job.py, line 3: y = x / 0"]),
    "missing import": ("import not_there_at_all\n", ["not_there_at_all", "job.py, line 1"]),
    "missing name": ("import karui\n\ndef tusk():\n    pass\n", ["has no 'task'", "tusk"]),
    "ends the program": ("import sys\nsys.exit(0)\n", ["sys.exit(0)", "__main__"]),
    "raises when called": ("def task():\n    return {}['model']\n", ["KeyError", "job.py, line 2"]),
    "needs arguments": ("def task(size):\n    return size\n", ["need no arguments"]),
    "is no model": ("task = 5\n", ["the model is a int, not an nn.Module"]),
    "gives no model": ("def task():\n    return 'resnet'\n", ["the model is a str, not an nn.Module"]),
    "is a state dict": (
        "from torch import nn\ntask = nn.Linear(2, 2).state_dict()\n",
        ["a state dict holds weights but not the network"],
    ),
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_task_file(cli, tmp_path, kind):
    text, answers = SCRIPTS[kind]
    (tmp_path / "job.py").write_text(text)
    (tmp_path / "data.py").write_text("import torch\nx = (torch.ones(8, 2), torch.ones(8).long())\n")
    says(cli("optimize", "job.py:task", "--select", "data.py:x", "--out", "run"), *answers)
    assert not (tmp_path / "run").exists()


def test_a_task_file_named_like_a_module_does_not_replace_it(cli, tmp_path):
    (tmp_path / "random.py").write_text("task = 5\n")
    says(cli("optimize", "random.py:task"), "no validation data")
    import random

    assert 0 <= random.random() < 1


@pytest.mark.parametrize(
    "spec", ["", ":", "job.py", "job.py:", "nothing.py:task", "nothing.pt2", "not a spec"]
)
def test_a_spec_that_names_nothing(cli, spec):
    says(cli("optimize", spec, "--out", "run"), "error: ")


def test_model_files_that_hold_no_network(cli, tmp_path):
    from safetensors.torch import save_file

    torch.save(jobs.mlp().state_dict(), "state.pt")
    torch.save(jobs.mlp(), "pickled.pth")
    save_file(jobs.mlp().state_dict(), "weights.safetensors")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello")
    says(cli("optimize", "state.pt"), "state.pt is a bare state dict", "file.py:name")
    says(cli("optimize", "weights.safetensors"), "is a bare state dict", "file.py:name")
    says(
        cli("optimize", "pickled.pth"),
        "pickled.pth is a pickled model",
        "unpickling runs code",
        "file.py:name",
    )
    says(cli("optimize", "empty.pt"), "no TorchScript file and no state dict")
    says(cli("optimize", "text.pt"), "no TorchScript file and no state dict")


def test_a_pickle_with_code_in_it_is_not_run(cli, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    torch.save(Bomb(), "bomb.pt")
    says(cli("optimize", "bomb.pt"), "is a pickled model")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_model_files_cut_short(cli, tmp_path, share):
    jobs.write_files(tmp_path)
    for name, words in {
        "net.pt2": "not an exported program",
        "net.pt": "no TorchScript file",
        "net.onnx": "not a whole ONNX file",
    }.items():
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: int(share * len(data))])
        says(cli("optimize", name, "--select", "data.py:both", "--out", "run"), words)


# what a run may be given in Python, and what it answers


def refused(**changes):
    model = jobs.mlp()
    given = {"model": model, "select": jobs.labelled(model, 8)} | changes
    with pytest.raises(UsageError) as caught:
        karui.optimize(karui.Task(**given), settings=jobs.quick())
    assert caught.value.exit_code == 2
    assert caught.value.why or caught.value.fix
    return str(caught.value)


X, Y = torch.randn(40, 8), torch.arange(40) % 3
BAD_DATA = {
    "nothing": ({"select": None}, "no validation data"),
    "empty list": ({"select": []}, "selection set is empty"),
    "empty arrays": ({"select": (X[:0], Y[:0])}, "selection set is empty"),
    "empty calibration": ({"calibrate": []}, "calibration set is empty"),
    "empty calibration arrays": ({"calibrate": (X[:0], Y[:0])}, "calibration set is empty"),
    "one sample": ({"select": (X[:1], Y[:1])}, "too small to divide"),
    "labels out of range": ({"select": (X, Y + 1)}, "labels run from 1 to 3, the model has 3 classes"),
    "negative labels": ({"select": (X, Y - 1)}, "labels are out of range"),
    "labels out of range at the end": ({"confirm": (X, Y + 7)}, "labels are out of range"),
    "float labels": ({"select": (X, Y.float())}, "class labels must be integers"),
    "no labels": ({"select": [X]}, "needs targets"),
    "no labels at the end": ({"confirm": [X]}, "needs targets"),
    "float64": ({"select": (X.double(), Y)}, "float64"),
    "float64 from numpy": ({"select": (X.double().numpy(), Y.numpy())}, "float64"),
    "calibration in float64": ({"calibrate": (X.double(), Y)}, "float64 (8,) per sample"),
    "another width": ({"confirm": (torch.randn(40, 9), Y)}, "(9,) per sample"),
    "does not run": ({"select": (torch.randn(40, 9), Y)}, "does not run on the example inputs"),
    "a function that fails": ({"select": lambda: 1 / 0}, "ZeroDivisionError"),
    "not data": ({"select": 7}, "could not be read"),
    "score that fails": ({"score": lambda outputs, targets: outputs.nothing}, "the score"),
    "score of another shape": ({"score": lambda outputs, targets: outputs}, "numbers for"),
    "score NaN": ({"score": lambda outputs, targets: outputs[:, 0] / 0 * 0}, "NaN"),
    "score unknown": ({"score": "beauty"}, "no score 'beauty'"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    changes, words = BAD_DATA[kind]
    assert words in refused(**changes)
    assert list((tmp_path).glob("karui-runs/*")) == []


def test_an_error_in_the_users_code_names_its_line():
    def broken():
        return [][3]

    assert "test_story_words.py, line" in refused(select=broken)
    assert "return [][3]" in refused(select=broken)
    assert "return [][3]" in refused(model=broken)


class Branch(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x) if x.sum() > 0 else self.head(-x)


def poisoned():
    model = jobs.mlp()
    with torch.no_grad():
        model[0].weight[3, 4] = float("nan")
    return model


class Overflowing(nn.Module):
    def forward(self, x):
        return (x * 1e38) * 1e38


class Averaging(nn.Module):
    def forward(self, x):
        return x.mean(0)


class Wordy(nn.Module):
    def forward(self, x):
        return {"answer": "yes"}


BAD_MODELS = {
    "NaN weights": (poisoned, "0.weight holds NaN or infinite values"),
    "float64": (lambda: jobs.mlp().double(), "is float64"),
    "half": (lambda: jobs.mlp().half(), "is float16"),
    "data-dependent branch": (Branch, "self.head(x) if x.sum() > 0"),
    "infinite answers": (Overflowing, "NaN or infinite outputs"),
    "no batch axis": (Averaging, "no batch axis"),
    "answers that are no tensors": (Wordy, "not all tensors"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_models(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    make, words = BAD_MODELS[kind]
    model = make()
    before = jobs.portrait(model)
    assert words in refused(model=model, select=(X, Y))
    assert jobs.portrait(model) == before
    assert list((tmp_path).glob("karui-runs/*")) == []


def test_a_data_dependent_branch_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(model=Branch(), select=(X, Y))
    assert "test_story_words.py, line" in message
    assert "torch.where or torch.cond" in message


# folders and files


def test_out_cannot_be_made(cli, task_file, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in ("/dev/null/run", "file", "file/run", "/proc/run"):
        says(cli("optimize", task_file, "--out", out, "--recipe", "fp32@onnxruntime"), "cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_out_holds_the_users_own_files(cli, task_file, tmp_path):
    before = jobs.contents(tmp_path)
    says(cli("optimize", task_file, "--out", "."), "is no run folder", "--out")
    assert jobs.contents(tmp_path) == before


def test_out_of_another_job(cli, task_file, copied_run):
    before = jobs.contents(copied_run)
    said = cli("optimize", task_file, "--out", copied_run, "--recipe", "fp32@onnxruntime", "--max-drop", "3")
    says(said, "belongs to another run", "different: ", "choose another --out")
    assert jobs.contents(copied_run) == before


def test_out_in_use(cli, task_file, copied_run, tmp_path):
    from karui import journal

    (tmp_path / "starting").mkdir()  # not one event in its journal yet
    for folder in (copied_run, tmp_path / "starting"):
        with journal.locked(folder):
            before = jobs.contents(folder)
            says(cli("optimize", task_file, "--out", folder), "is in use")
            assert jobs.contents(folder) == before


def test_a_second_try_after_a_mistake_keeps_the_new_words(cli, tmp_path):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE.replace(".argmax(1)", ".argmax(1) + 9"))
    says(cli("optimize", "job.py:task", "--out", "run"), "labels are out of range")
    assert not (tmp_path / "run").exists()


VERBS_ON_A_FOLDER = ["resume", "report", "show", "table", "verify"]


@pytest.mark.parametrize("verb", VERBS_ON_A_FOLDER)
def test_folders_that_are_no_runs(cli, tmp_path, verb):
    (tmp_path / "empty").mkdir()
    says(cli(verb, "nowhere"), "nowhere")
    says(cli(verb, "empty"), "empty")


@pytest.mark.parametrize("verb", VERBS_ON_A_FOLDER)
def test_a_result_that_is_cut_short(cli, copied_run, verb):
    for name in ("result.json", "run.json"):
        (copied_run / name).write_text('{"schema": "karui.res')
    (copied_run / "journal.jsonl").write_text("")
    says(cli(verb, copied_run), "cannot be read")


def test_init_export_and_report_do_not_write_over_anything(cli, copied_run, tmp_path):
    assert cli("init", "mine.py").code == 0
    compile((tmp_path / "mine.py").read_text(), "mine.py", "exec")
    says(cli("init", "mine.py"), "is there already")
    (tmp_path / "there").mkdir()
    says(cli("export", copied_run, "--to", "there"), "is there already")
    says(cli("init", "/dev/null/x.py"), "cannot be read or written")
    says(cli("export", copied_run, "--to", "/dev/null/x"), "cannot be read or written")
    says(cli("report", copied_run, "--to", "/dev/null/x"), "cannot be read or written")


# tampering


def tamper(run, how):
    model = run / "trials" / "onnxruntime-fp32" / "artifact" / "model.onnx"
    if how == "changed":
        data = bytearray(model.read_bytes())
        data[len(data) // 2] ^= 1
        model.write_bytes(data)
    elif how == "cut short":
        model.write_bytes(model.read_bytes()[:-40])
    elif how == "added":
        model.with_name("evil.so").write_bytes(b"x")
    else:
        model.unlink()
    return model.parent


@pytest.mark.parametrize("how", ["changed", "cut short", "added", "lost"])
def test_a_tampered_artifact_is_never_opened(cli, copied_run, how):
    folder = tamper(copied_run, how)
    word = {"changed": "model.onnx was changed", "cut short": "model.onnx was changed"}.get(
        how, "added or lost"
    )
    says(cli("show", folder), "not as it was made", word)
    says(cli("export", folder, "--to", "copy"), "not as it was made", word)
    said = cli("verify", folder, "--no-speed")
    assert said.code == 6
    assert "REGRESSION" in said.out
    assert word in said.out
    with pytest.raises(KaruiError, match="not as it was made") as caught:
        karui.load(folder)
    assert caught.value.exit_code == 2


def test_archives_that_escape_or_are_broken(cli, copied_run, tmp_path):
    folder = copied_run / "trials" / "onnxruntime-fp32" / "artifact"
    assert cli("export", folder, "--to", "good.zip").code == 0
    assert cli("show", "good.zip").code == 0
    whole = (tmp_path / "good.zip").read_bytes()
    for name in ("../../escaped", "/escaped", "a/../../escaped"):
        (tmp_path / "bad.zip").write_bytes(whole)
        with zipfile.ZipFile("bad.zip", "a") as bundle:
            bundle.writestr(name, "boo")
        says(cli("show", "bad.zip"), "leads out of its folder", "do not use this file")
        with pytest.raises(KaruiError, match="leads out of its folder"):
            karui.load(tmp_path / "bad.zip")
    damaged = bytearray(whole)
    damaged[200:260] = b"\0" * 60
    for broken in (whole[: len(whole) // 2], whole[:-10], bytes(damaged), b"", b"hello"):
        (tmp_path / "bad.zip").write_bytes(broken)
        said = cli("show", "bad.zip")
        assert (said.code, said.out) == (2, "")
        assert "Traceback" not in said.err
    says(cli("show", "nowhere.zip"), "there is no file nowhere.zip")
    assert not list(tmp_path.parent.glob("**/escaped"))


def test_json_errors_are_json_and_nothing_else(cli, task_file, copied_run, tmp_path):
    tampered = tamper(copied_run, "changed")
    for words in (
        ["optimize", task_file, "--max-drop", "banana"],
        ["optimize", "nowhere.py:task"],
        ["bench", "nowhere.py:task"],
        ["bench", task_file],
        ["resume", "nowhere"],
        ["show", tampered],
        ["verify", "nowhere"],
    ):
        said = cli(*words, "--json")
        facts = json.loads(said.out)
        assert (facts["schema"], facts["exit_code"], said.code) == ("karui.error/1", 2, 2)
        assert facts["error"].splitlines()[0] in said.err
    assert len(said.out.splitlines()) == 1


def test_every_verb_that_writes_says_in_json_what_it_wrote(cli, copied_run, tmp_path):
    for words, schema, written in (
        (["init", "task.py"], "karui.init/1", ["task.py"]),
        (["export", copied_run, "--to", "out.zip"], "karui.export/1", ["out.zip"]),
        (["report", copied_run, "--to", "again"], "karui.report/1", ["again/report.html"]),
    ):
        said = cli(*words, "--json")
        facts = json.loads(said.out)
        assert (said.code, facts["schema"]) == (0, schema)
        paths = facts.get("paths") or [facts["path"]]
        assert set(written) <= set(paths)
        assert all((tmp_path / path).exists() for path in paths)


def test_an_exported_zip_leaves_nothing_behind(cli, copied_run, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert cli("export", copied_run, "--to", "out.zip").code == 0
    assert cli("show", "out.zip").code == 0
    assert list(scratch.iterdir()) == []
    call = karui.load("out.zip")
    assert len(list(scratch.iterdir())) == 1
    del call
    gc.collect()
    assert list(scratch.iterdir()) == []
    with pytest.raises(KaruiError):
        karui.load("nowhere.zip")
    assert list(scratch.iterdir()) == []

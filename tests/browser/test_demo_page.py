"""The page that an export brings: opened in Chromium from a plain static server, given images, looked at."""

from __future__ import annotations

import base64
import functools
import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.runtimes.torch_source import source_of
from torch import nn

from karui import demo
from karui.artifact import Artifact, load_artifact, save_artifact
from karui.browser.chromium import Chromium, Tab
from karui.browser.ort_web import FILES
from karui.cli.main import main
from karui.errors import UsageError
from karui.recipe import parse_named
from karui.runtimes import load

PAGE = {"index.html", "model.onnx", *FILES["wasm"]}
DESKTOP, PHONE = (1100, 760), (390, 844)
BAR = {"light": (0xCF, 0xE5, 0xE1), "dark": (0x22, 0x44, 0x3F)}  # what the page paints bars with


class Quiet(SimpleHTTPRequestHandler):
    """A static server with no headers of its own."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def artifact_of(model: nn.Module, rows: np.ndarray, folder: Path) -> Artifact:
    (folder / "source").mkdir(parents=True)
    (folder / "artifact").mkdir()
    source = source_of(model, rows, folder / "source")
    built = load(parse_named("ort_web")).build(source, folder / "artifact")
    made = Artifact(folder / "artifact", "fp32@ort_web", "ort_web", source.signature, executed=built.executed)
    return save_artifact(made)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return demo.load_arrays().test_images[:64]


@pytest.fixture(scope="module")
def artifact(images, tmp_path_factory) -> Artifact:
    return artifact_of(demo.model(), images, tmp_path_factory.mktemp("fashion"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    one = Chromium(("--disable-gpu",))
    yield one
    one.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """A folder, and the address it is served at."""
    folder = tmp_path_factory.mktemp("served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def page(artifact, served, browser) -> Tab:
    folder, url = served
    words = ["export", str(artifact.folder), "--to", str(folder / "fashion"), "--page"]
    assert main([*words, "--labels", ",".join(demo.CLASSES), "--title", "What is it?"]) == 0
    assert {file.name for file in (folder / "fashion").iterdir()} == PAGE
    assert (folder / "fashion" / "model.onnx").read_bytes() == (artifact.folder / "model.onnx").read_bytes()
    tab = browser.open(f"{url}/fashion/")
    until(tab, "document.getElementById('answer').textContent === 'Waiting for an image.'")
    return tab


def until(tab: Tab, condition: str) -> None:
    end = time.monotonic() + 60
    while not tab.run(condition):
        assert time.monotonic() < end, tab.run("document.body.innerText")
        time.sleep(0.02)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * image.squeeze()).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def upload(tab: Tab, path: Path) -> str:
    """Choose a file in the page's own field, and wait for the result; the class that is shown."""
    field = tab.ask("Runtime.evaluate", {"expression": "document.getElementById('file')"})["result"]
    tab.run("document.getElementById('time').textContent = '–'")
    tab.ask("DOM.setFileInputFiles", {"files": [str(path)], "objectId": field["objectId"]})
    return result(tab)


def drop(tab: Tab, content: bytes) -> str:
    """The same with a file dropped onto the page."""
    tab.run("document.getElementById('time').textContent = '–'")
    text = base64.b64encode(content).decode()
    tab.run(
        f"""(() => {{
        const raw = Uint8Array.from(atob({text!r}), (one) => one.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([raw], "image.png", {{ type: "image/png" }}));
        document.getElementById("drop").dispatchEvent(
          new DragEvent("drop", {{ dataTransfer, bubbles: true, cancelable: true }}));
        }})()"""
    )
    return result(tab)


def result(tab: Tab) -> str:
    until(tab, "document.getElementById('time').textContent !== '–'")
    assert tab.run("document.getElementById('trouble').hidden")
    return tab.run("document.getElementById('answer').textContent")


def in_python(artifact: Artifact, images: np.ndarray) -> np.ndarray:
    """Probabilities by ONNX Runtime in this process."""
    predict = load(parse_named("onnxruntime")).load(artifact.folder, artifact.signature, 1)
    scores = predict({artifact.signature.inputs[0].name: images})[0].astype(np.float64)
    raised = np.exp(scores - scores.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


@pytest.mark.gate
def test_the_class_that_is_shown_is_what_python_says(page, artifact, images, tmp_path):
    wanted = in_python(artifact, images)
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(png(images[i]))
        shown = upload(page, tmp_path / f"{i}.png") if i % 2 else drop(page, png(images[i]))
        assert shown == demo.CLASSES[wanted[i].argmax()]
        bars = page.run(
            "Array.from(document.querySelectorAll('#bars li'), (one) => one.innerText.split('\\n'))"
        )
        assert [name for name, _ in bars] == [demo.CLASSES[k] for k in np.argsort(-wanted[i])[:5]]
        shares = [float(share.removesuffix("%")) for _, share in bars]
        assert np.abs(np.array(shares) - 100 * np.sort(wanted[i])[::-1][:5]).max() < 0.2
    assert float(page.run("document.getElementById('time').textContent").removesuffix(" ms")) > 0


@pytest.mark.gate
@pytest.mark.parametrize(("scheme", "size"), [("light", DESKTOP), ("dark", PHONE)])
def test_the_page_looks_as_it_should(page, images, tmp_path, scheme, size):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.ask("Emulation.setEmulatedMedia", media)
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    page.ask("Emulation.setDeviceMetricsOverride", screen)
    drop(page, png(images[16]))
    ends = "Array.from(document.querySelectorAll('body *'), (one) => one.getBoundingClientRect().right)"
    assert max(page.run(ends)) <= size[0]  # nothing is cut off
    time.sleep(0.5)  # the bars grow for a moment
    shot = page.ask("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
    picture = tmp_path / f"{scheme}-{size[0]}.png"
    picture.write_bytes(base64.b64decode(shot["data"]))
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200  # not blank: letters and an image
    assert (pixels.mean() > 128) == (scheme == "light")
    box = page.run("document.querySelector('#bars i').getBoundingClientRect().toJSON()")
    x, y, width, height = (round(box[key]) for key in ("x", "y", "width", "height"))
    bar = pixels[y + 3 : y + height - 3, x + 3 : x + width - 3]
    assert width > 100 and (np.abs(bar - BAR[scheme]).max(2) <= 2).mean() > 0.6  # letters stand on it
    page.ask("Emulation.clearDeviceMetricsOverride")


@pytest.mark.gate
def test_the_page_needs_no_network_and_no_headers(page, served):
    assert page.run("self.crossOriginIsolated") is False  # a plain server: one thread, the same answers
    asked = page.run("performance.getEntriesByType('resource').map((one) => one.name)")
    assert any(name.endswith(".wasm") for name in asked)
    assert all(name.startswith((served[1], "data:", "blob:")) for name in asked)
    text = Path(served[0], "fashion", "index.html").read_text().replace("http://www.w3.org/", "")
    assert "http://" not in text and "https://" not in text


class Pair(nn.Module):
    """(n, 4) -> (n, 3, 2): no image, no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).reshape(-1, 3, 2)


@pytest.mark.gate
def test_other_inputs_are_run_on_stored_samples(served, browser, tmp_path):
    torch.manual_seed(0)
    folder, url = served
    rows = np.random.default_rng(0).standard_normal((16, 4), dtype=np.float32)
    made = artifact_of(Pair().eval(), rows, tmp_path)
    assert main(["export", str(made.folder), "--to", str(folder / "pair"), "--page"]) == 0
    tab = browser.open(f"{url}/pair/")
    shown = [float(value) for value in result(tab).split()]
    config = json.loads(tab.run("document.getElementById('config').textContent"))
    given = np.frombuffer(base64.b64decode(config["samples"][0][0]), np.float32).reshape(1, 4)
    predict = load(parse_named("onnxruntime")).load(made.folder, made.signature, 1)
    wanted = predict({made.signature.inputs[0].name: given})[0].ravel()
    np.testing.assert_allclose(shown, wanted, rtol=1e-3)
    assert tab.run("document.getElementById('which').textContent") == "sample 1 of 3, random"
    assert "ms" in tab.run("document.getElementById('time').textContent")


def test_a_colour_image_is_cut_scaled_and_normalized(served, browser, tmp_path):
    """A network that gives the mean of each channel back, on an image of other proportions."""
    folder, url = served

    class Means(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    made = artifact_of(Means().eval(), np.zeros((16, 3, 16, 16), np.float32), tmp_path)
    words = ["export", str(made.folder), "--to", str(folder / "means"), "--page"]
    words += ["--mean", "0.5,0.4,0.3", "--std", "0.25", "--labels", "red,green,<script>blue"]
    assert main(words) == 0
    tab = browser.open(f"{url}/means/")
    until(tab, "document.getElementById('answer').textContent === 'Waiting for an image.'")
    colour = np.broadcast_to(np.array([102, 51, 204], np.uint8), (40, 90, 3))
    Image.fromarray(np.ascontiguousarray(colour)).save(tmp_path / "colour.png")
    assert upload(tab, tmp_path / "colour.png") == "<script>blue"
    scores = (np.array([102, 51, 204]) / 255 - [0.5, 0.4, 0.3]) / 0.25
    wanted = 100 * np.sort(np.exp(scores) / np.exp(scores).sum())[::-1]
    bars = tab.run(
        "Array.from(document.querySelectorAll('#bars li'), (one) => one.innerText.split('\\n')[1])"
    )
    assert np.abs([float(text.removesuffix("%")) for text in bars] - wanted).max() < 0.2
    (tmp_path / "broken.png").write_bytes(b"no image")
    field = tab.ask("Runtime.evaluate", {"expression": "document.getElementById('file')"})["result"]
    tab.ask("DOM.setFileInputFiles", {"files": [str(tmp_path / "broken.png")], "objectId": field["objectId"]})
    until(tab, "!document.getElementById('trouble').hidden")
    assert "cannot be read as an image" in tab.run("document.getElementById('trouble').textContent")


def test_what_a_page_cannot_be_made_of_is_refused_and_leaves_nothing(artifact, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = str(artifact.folder)
    for words, told in (
        (["--to", "page", "--page", "--mean", "0.1,0.2"], "2 values of mean for 1 channels"),
        (["--to", "page", "--page", "--std", "a"], "cannot read --std"),
        (["--to", "page", "--page", "--samples", "3"], "there are no samples"),
        (["--to", "page.zip", "--page"], "a page stands in a folder"),
    ):
        assert main(["export", source, *words]) == 2
        assert told in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
    assert main(["export", source, "--to", "browser"]) == 0
    assert {file.name for file in (tmp_path / "browser").iterdir()} == PAGE
    monkeypatch.setenv("KARUI_ORT_WEB", str(tmp_path))
    assert main(["export", source, "--to", "other", "--page"]) == 4
    assert "npm install" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_other_artifacts_have_no_page(tmp_path):
    from karui.browser.demo import Shown, write_page

    (tmp_path / "model.pte").write_bytes(b"a model")
    made = save_artifact(Artifact(tmp_path, "fp32@executorch", "executorch", load_signature()))
    with pytest.raises(UsageError, match="cannot run in a browser"):
        write_page(load_artifact(made.folder), Shown("x"), tmp_path)


def load_signature():
    from karui.artifact import Port, Signature

    port = Port("x", "float32", (None, 4))
    return Signature("args", (port,), (port,))

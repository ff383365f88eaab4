"""``--jobs`` and ``--ray``: trials are built by other processes, and the run is what it would be without."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import jobs
import pytest
from benchmarks.cluster import cluster, kill_one

import karui
from karui import journal
from karui.measurement import Trial
from karui.optimize.crew import Help
from karui.optimize.watch import Watcher

RECIPES = (
    "fp32@onnxruntime",
    "int8@onnxruntime",
    "prune_channels:macs=0.25 + fp32@onnxruntime",
    "prune_channels:macs=0.25 + int8@onnxruntime",
)


class Times(Watcher):
    """When each trial was opened, scored and timed."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        self.began = 0.0

    def stage(self, text: str) -> None:
        return

    def trial(self, recipe: str, done: int, total: int) -> None:
        self.began = time.time()

    def training(self, progress) -> None:
        return

    def done(self, trial: Trial) -> None:
        self.spans.append((self.began, time.time()))


def run(folder: Path, help: Help, watcher: Watcher) -> dict:
    settings = dataclasses.replace(jobs.quick(*RECIPES), help=help, watcher=watcher)
    return karui.optimize(jobs.mlp_task(), max_drop=5, out=folder, settings=settings).facts


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    return run(tmp_path_factory.mktemp("alone") / "run", Help(), Times())


@pytest.fixture(scope="module")
def helped(tmp_path_factory) -> tuple[dict, Path, Times]:
    """A run of two processes, one of which is killed while it builds."""
    folder, times = tmp_path_factory.mktemp("helped") / "run", Times()
    killer = threading.Thread(target=kill_in_mid_build, args=(folder,))
    killer.start()
    try:
        return run(folder, Help(jobs=2), times), folder, times
    finally:
        killer.join()


def kill_in_mid_build(folder: Path) -> None:
    """End the process of hand 1 as soon as it has begun with a model."""
    until = time.monotonic() + 60
    while not list(folder.glob("hands/1/trials/*/draft")) and time.monotonic() < until:
        time.sleep(0.01)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"karui.optimize.hand" in words and str(folder / "hands" / "1").encode() in words:
            os.kill(int(path.parent.name), signal.SIGKILL)


def events(folder: Path, kind: str) -> list[dict]:
    return [event for event in journal.read(folder) if event["event"] == kind]


def found(facts: dict) -> tuple:
    """All that does not hang on the clock, and the choice."""
    told = ("id", "recipe", "precision", "size_bytes", "quality", "executed")
    return facts["best"], [{key: trial[key] for key in told} for trial in facts["trials"]]


@pytest.mark.gate
def test_a_builder_killed_in_mid_build_changes_nothing_of_what_is_found(alone, helped):
    facts, folder, _ = helped
    lost = events(folder, "lost")
    assert len(lost) == 1 and lost[0]["recipes"] and "SIGKILL" in lost[0]["reason"]
    assert {event["recipe"] for event in events(folder, "built")} == {"fp32@torch_eager", *RECIPES}
    assert facts["best"] is not None and found(facts) == found(alone)
    assert not (folder / "hands").exists()


@pytest.mark.gate
def test_nothing_is_built_on_this_machine_while_a_trial_is_timed(helped):
    _, folder, times = helped
    built = [(event["began"], event["ended"]) for event in events(folder, "built")]
    assert len(built) == len(times.spans) == 5
    assert all(end <= begin or begun >= over for begun, end in built for begin, over in times.spans)


def test_recipes_with_the_same_steps_are_built_by_the_same_process(helped):
    _, folder, _ = helped
    pruned = [event for event in events(folder, "built") if "prune" in event["recipe"]]
    assert len(pruned) == 2 and pruned[0]["ended"] <= pruned[1]["began"]


@pytest.fixture
def task_file(tmp_path):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE)
    return "job.py:task"


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["--jobs", "-1"], "jobs is a number, not -1", "0 for none"),
        (["--trial-cpus", "2"], "nothing has a share of the machine", "--jobs N or --ray ADDRESS"),
        (["--jobs", "2", "--trial-memory", "lots"], "'lots'", ""),
        (["--ray", "ray://there:1"], "cannot use the address 'ray://there:1'", "--ray HOST:PORT"),
        (["--ray", "127.0.0.1:1"], "there is no Ray cluster at 127.0.0.1:1", "ray start --head"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(cli, task_file, tmp_path, words, what, fix):
    said = cli("optimize", task_file, "--recipe", "fp32@onnxruntime", *words, "--out", "run")
    assert said.code == 2 and what in said.err and fix in said.err
    assert not (tmp_path / "run").exists()


def test_a_task_that_holds_on_to_this_process_is_refused(tmp_path):
    task = dataclasses.replace(jobs.mlp_task(), finetune=(lambda held: lambda net: held)(threading.Lock()))
    with pytest.raises(karui.KaruiError, match="cannot be sent to another process") as caught:
        karui.optimize(
            task, out=tmp_path / "run", settings=dataclasses.replace(jobs.quick(), help=Help(jobs=1))
        )
    assert "lock" in caught.value.why and not (tmp_path / "run").exists()


@pytest.mark.gate
def test_a_node_of_a_ray_cluster_killed_in_mid_run_changes_nothing_of_what_is_found(alone, tmp_path):
    """Three raylets of one CPU each, processes of their own, beside a head on which nothing is built."""
    folder = tmp_path / "run"
    with cluster(3) as (address, raylets):
        killer = threading.Thread(target=kill_one, args=(raylets, 120.0))
        killer.start()
        try:
            facts = run(folder, Help(ray=address), Times())
        finally:
            killer.join()
    assert [bool(event["recipes"]) for event in events(folder, "lost")].count(True) == 1
    assert found(facts) == found(alone)

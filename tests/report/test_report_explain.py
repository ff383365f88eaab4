"""Each sentence of an explanation: a document in which it is said, and one in which it is not."""

from __future__ import annotations

import copy
import inspect
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import sample

from karui import budget
from karui.bench import stats
from karui.cli.main import parser
from karui.errors import UsageError
from karui.recipe import parse_recipe
from karui.report import advice, others, said, why
from karui.report.explain import explain, text

Doc = dict[str, Any]
EAGER, ORT, INT8 = "fp32@torch_eager", "fp32@onnxruntime", "int8@onnxruntime"
HALF, QUARTER = (f"prune_channels:macs={share} + fp32@onnxruntime" for share in ("0.5", "0.25"))
LAYERS = [{"layer": "head", "sqnr_db": 11.0}, {"layer": "stem", "sqnr_db": 41.0}]


def doc(
    *edits: tuple[str, Any], more: tuple[Doc, ...] = (), refused: tuple[tuple[str, str], ...] = ()
) -> Doc:
    """Eager, ONNX Runtime in FP32, and its INT8, which is the best.

    Paths: ``./key`` of the best, ``recipe/key`` of another, ``/key`` of the run.
    """
    result = sample.full()
    result["trials"] = [t for t in result["trials"] if t["recipe"] in (EAGER, ORT, INT8)] + list(more)
    result["refused"] = [{"recipe": recipe, "reason": reason} for recipe, reason in refused]
    result["host"]["cores"] = 1
    for path, value in edits:
        recipe, *keys = path.split("/")
        wanted = INT8 if recipe == "." else recipe
        at = next(t for t in result["trials"] if t["recipe"] == wanted) if recipe else result
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
    return result


def one(recipe: str, speed: float = 4.0, drop: float = 0.0, verdict: str = "within", **keys: Any) -> Doc:
    """A further trial, so many times as fast as the original."""
    entry = copy.deepcopy(next(t for t in sample.full()["trials"] if t["recipe"] == ORT))
    name = re.sub(r"\W+", "-", recipe)
    status = "kept" if verdict == "within" else "rejected"
    entry.update(id=name, recipe=recipe, status=status, reason="for some reason")
    entry.update(runtime=recipe.rpartition("@")[2], precision=str(parse_recipe(recipe).numerics.default))
    entry.update(
        speedup=sample.ratio(speed, sample.EAGER, name), quality=sample.quality(drop, verdict, 850, 0.9141)
    )
    return entry | {"speedup_same_runtime": None} | keys


def facts(result: Doc, name: str = "best") -> dict[str, str]:
    """Each sentence by its part and its fact; the groups of other candidates are one part."""
    return {
        f"{'others' if part['key'] in others.GROUPS else part['key']}/{one['fact']}": one["text"]
        for part in explain(result, name)["parts"]
        for one in part["said"]
    }


def speed(value: float, verdict: str) -> Doc:
    return sample.ratio(value, sample.EAGER, "x") | {"verdict": verdict}


SAME, SLOW = "no measurable difference", "slower"
FEW = speed(9.0, SAME)
UNTIMED = {"speedup": None, "latency_s": None, "speedup_same_runtime": None}
STANDS_IN = {"status": "verified by reference", "checks": [], "stands_in": "Core ML runs on macOS only"}
ELSEWHERE = one("fp32@coreml", verification=STANDS_IN, **UNTIMED)
NO_BEST = (("/best", None), ("/best_effort", None))
OVER = one(QUARTER, 15.0, 0.03, "over")
UNSURE = one(QUARTER, 15.0, 0.004, "undecided")
TRAINED = one(f"finetune + {HALF}", 2.0)
LOOKS = [
    {"trial": "onnxruntime-fp32", "verdict": "undecided"},
    {"trial": "onnxruntime-int8", "verdict": "within"},
]
UNCONFIRMED = (("/confirm/looks", LOOKS), (f"{ORT}/status", "rejected"))
SLOWER_STEP = (f"{ORT}/speedup", speed(0.8, SLOW))
STEPS = {"prune_channels:macs=0.5": {"touched": 4, "macs": [840.0, 276.0]}}
UNTOUCHED = {"fold_norm": {"touched": 0}}
IDENTICAL = sample.quality(0.0, "within", 850, 0.9141)
TIME_UP, MET = "the time was up", "onnxruntime-int8 met the goal of 5x"
FARTHER, MISSING = (
    f"goes farther than {QUARTER}, which is over the accuracy budget",
    "not installed: pip install 'karui[x]'",
)
SEEN = {"effort": 0.1, "size_bytes": 2048, "quality": sample.quality(0.03, "over", 256, 0.9141),
        "speedup": sample.ratio(15.0, sample.EAGER, "x")}  # fmt: skip
SCREENED = {"recipe": QUARTER, "reason": f"screened out: slower than {ORT}, which is kept", "screened": SEEN}
LIMIT = ("/budget/max_latency_s", 0.3e-3)
LIMITED = one("fp32@openvino", 3.0, status="rejected")

# fact: a document that says it, one that does not, and some of its words
Case = tuple[Doc, Doc, str]
CASES: dict[str, dict[str, Case]] = {
  "numbers": {
    "only": (doc((f"{ORT}/status", "rejected")), doc(), "only candidate inside"),
    "first": (doc(), doc(more=(one("fp32@openvino", 12.0),)), "came out fastest of the 2 candidates"),
    "first_unsure": (doc(more=(one("fp32@openvino", 9.3),)), doc(), "not surely ahead of 1 of them"),
    "tied": (doc(more=(one("fold_norm + int8@openvino", 9.4),)), doc(), "the simpler is taken"),
    "best_effort": (sample.nothing_met(), doc(), "this one lost least"),
    "original": (doc(), doc(("/baseline", "onnxruntime-fp32")), "It is the original: 2.04 ms"),
    "untimed": (doc(more=(ELSEWHERE,)), doc(more=(one("fp32@coreml"),)), "Core ML runs on macOS only"),
    "speed": (doc(), doc(("./speedup", None)), "9.31x [9.15, 9.49] as fast as the original"),
    "speed_slower": (doc((f"{ORT}/speedup", speed(0.8, SLOW))), doc(), "slower than the original, 0.80x"),
    "speed_same": (doc((f"{ORT}/speedup", speed(1.0, SAME))), doc(), "no measurable difference, 1.00x"),
    "speed_few": (doc(("./speedup", FEW)), doc(), "too few rounds were timed for a verdict, 9.00x"),
    "compiled_few": (doc(("./speedup_compiled", FEW)), doc(), "Against torch.compile too few rounds"),
    "same_runtime_few": (
        doc(("./speedup_same_runtime", FEW | {"against": "onnxruntime-fp32"})), doc(), "too few rounds",
    ),
    "compiled": (doc(), doc(("./speedup_compiled", None)), "as fast as torch.compile"),
    "compiled_slower": (doc(("./speedup_compiled", speed(0.8, SLOW))), doc(), "slower than torch.comp"),
    "compiled_same": (doc(("./speedup_compiled", speed(1.0, SAME))), doc(), "Against torch.compile"),
    "same_runtime": (doc(), doc(("./speedup_same_runtime", None)), "1.82x [1.79, 1.86] as fast as FP32 in"),
    "same_runtime_slower": (
        doc(("./speedup_same_runtime", speed(0.8, SLOW) | {"against": "onnxruntime-fp32"})),
        doc(), "slower than FP32 in the same runtime",
    ),
    "same_runtime_same": (
        doc(("./speedup_same_runtime", speed(1.0, SAME) | {"against": "onnxruntime-fp32"})),
        doc(), "Against FP32 in the same runtime",
    ),
    "size": (doc(), doc(("./size_bytes", None)), "88.0 KiB on disk, 0.28x of the original's 311 KiB"),
    "score": (doc(), doc(("./quality", None)), "loses 0.12 points [−0.10, 0.34] (0.5 points allowed)"),
    "score_identical": (doc(("./quality", IDENTICAL)), doc(), "no outcome differs"),
    "confirmed": (doc(), doc(("/confirm", None)), "On 850 samples that the search never saw"),
    "confirmed_identical": (doc(("/confirm/quality", IDENTICAL)), doc(), "no outcome differs"),
    "one_look": (doc(), doc(*UNCONFIRMED), "used once"),
    "several_looks": (doc(*UNCONFIRMED), doc(), "fp32@onnxruntime (undecided). So it had to hold at 5 % / 2"),
  },
  "steps": {
    "step": (doc(), doc(("./speedup", None), ("./latency_s", None)), "int8 gains: 0.399 ms to"),
    "step_slower": (doc(SLOWER_STEP), doc(), "The runtime onnxruntime costs time"),
    "step_same": (doc((f"{ORT}/speedup", speed(1.0, SAME))), doc(), "makes no measurable difference"),
    "step_few": (doc((f"{ORT}/speedup", speed(9.0, SAME))), doc(), "was timed in too few rounds"),
    "account": (doc(("./executed/steps", STEPS)), doc(), "MACs a sample 840 → 276 (1/3.04)"),
    "untouched": (doc(("./executed/steps", UNTOUCHED)), doc(), "fold_norm found nothing to change"),
  },
  "runs": {
    "kernels": (doc(), doc(("./executed/detail", "")), "Kernels: QLinearConv x7, QGemm x1"),
    "other_precision": (doc(("./executed/precision", "fp32")), doc(), "in fp32, where int8 was asked"),
    "int8_macs": (doc(("./executed/int8_macs", 0.98)), doc(), "98.0 % of the multiplications"),
    "int8_kernels": (
        doc(("./executed/int8_kernels", 7), ("./executed/float_kernels", 1)),
        doc(("./executed/float_kernels", 1)), "7 of 8 kernels",
    ),
    "weights": (
        doc(("./executed/weights", {"4": 0.471, "8": 0.529})), doc(("./executed/weights", {"32": 1.0})),
        "Of the weights, 47.1 % in 4 bits and 52.9 % in 8 bits are stored",
    ),
    "fallback": (
        doc(("./executed/fallback", [{"op": "Gemm", "reason": "kept in FP32 by a rule"}] * 2)),
        doc(("./executed/fallback", [])), "Not in INT8: Gemm x2: kept in FP32 by a rule",
    ),
    "loud_layers": (
        doc(("./executed/layers", LAYERS)), doc(("./executed/layers", LAYERS[1:])), "head (11 dB)",
    ),
    "verified": (doc(), doc(("./verification", None)), "Verified on runtime, 5 checks passed"),
    "check_failed": (
        doc(("./verification/checks", [{"name": "two calls", "ok": False, "detail": "differ"}])),
        doc(), "A check failed: two calls: differ",
    ),
  },
  "others": {
    "unconfirmed": (doc(*UNCONFIRMED), doc(), ""),
    "over": (doc(more=(OVER,)), doc(), "loses 3.00 points [1.92, 4.08], 0.5 points allowed"),
    "undecided": (doc(more=(UNSURE,)), doc(), "about 1,900 more samples would settle it"),
    "limits": (doc(LIMIT, more=(LIMITED,)), doc(more=(LIMITED,)), "a call, 0.3 ms allowed"),
    "slower": (
        doc((f"{ORT}/status", "rejected"), (f"{ORT}/speedup", speed(0.5, SLOW))), doc(), "0.50x",
    ),
    "slower_same": (
        doc(more=(one("fp16@onnxruntime", speedup_same_runtime=speed(0.8, SLOW)),)), doc(), "0.80x",
    ),
    "behind": (doc(), doc(*NO_BEST), "5.10x [5.01, 5.20] against the original"),
    "level": (doc(more=(one("fp32@openvino", 9.3),)), doc(), ""),
    "no_gain": (doc(*NO_BEST), doc(), "against the original"),
    "untimed": (doc(more=(ELSEWHERE,)), doc(), ""),
    "failed": (doc((f"{ORT}/status", "failed"), (f"{ORT}/reason", "killed")), doc(), "killed (log: trials/"),
    "rejected": (doc((f"{ORT}/status", "rejected"), (f"{ORT}/reason", "odd")), doc(), "odd"),
    "unfinished": (doc((f"{ORT}/status", None)), doc(), ""),
    "missing": (doc(refused=(("fp32@x", MISSING),)), doc(refused=(("fp32@x", "no"),)), "pip install"),
    "refused": (doc(refused=(("fp32@x", "no kernel"),)), doc(refused=(("fp32@x", MISSING),)), "no kernel"),
    "screened": (
        doc(("/refused", [SCREENED])), doc(refused=((HALF, FARTHER),)),
        "which is kept (with 10 % of the training it loses 3.00 points [1.92, 4.08] on 256 samples, takes "
        "2.00 KiB, shows 15.0x [14.7, 15.3] against the original in few rounds)",
    ),
    "farther": (doc(refused=((HALF, FARTHER),)), doc(), QUARTER),
    "stopped": (doc(refused=((HALF, MET),)), doc(), "met the goal of 5x"),
  },
  "next": {
    "more_samples": (
        doc(more=(UNSURE,)), doc(more=(one(QUARTER, 2.0, 0.004, "undecided"),)),
        "about 1,900 beside the 850 there are would settle",
    ),
    "looser_budget": (
        doc(more=(OVER,)), doc(more=(one(QUARTER, 2.0, 0.03, "over"),)), "A budget of 4.08 points",
    ),
    "recovery": (doc(more=(OVER,)), doc(more=(OVER, TRAINED)), "Without training"),
    "rounding": (
        doc(more=(one("fp32@openvino"), one("int8@openvino", 15.0, 0.03, "over"))),
        doc(more=(one("int8@openvino", 15.0, 0.03, "over"),)), "in FP32 it did",
    ),
    "between": (doc(more=(one(HALF, 7.0), OVER)), doc(more=(OVER,)), "tries other shares"),
    "full_width": (doc(), doc(more=(one(HALF),)), "the network's full width"),
    "smaller": (
        doc(more=(one(HALF, 7.0, size_bytes=50_000),)), doc(more=(one(HALF, 7.0),)), "with 48.8 KiB",
    ),
    "level": (doc(more=(one("fp32@openvino", 9.3),)), doc(), "Not surely slower"),
    "unconfirmed": (doc(*UNCONFIRMED), doc(), "The 850 samples kept for the end were too few"),
    "missing": (doc(refused=(("fp32@x", MISSING),)), doc(refused=(("fp32@x", "no"),)), "fp32@x"),
    "time_up": (doc(refused=((HALF, TIME_UP),)), doc(refused=((HALF, MET),)), "1 recipe was not tried"),
    "elsewhere": (doc(more=(ELSEWHERE,)), doc(), "fp32@coreml has no time yet"),
    "threads": (doc(("/host/cores", 8)), doc(), "Measured with 1 thread on 8 cores"),
  },
}  # fmt: skip

ENDS = ("", "_slower", "_same", "_few")
ABOUT = {
    "numbers/original": EAGER,
    "numbers/untimed": "fp32@coreml",
    "numbers/speed_slower": ORT,
    "numbers/speed_same": ORT,
}
NAMED = {f"{part}/{fact}": case for part, cases in CASES.items() for fact, case in cases.items()}


@pytest.mark.gate
@pytest.mark.parametrize("fact", NAMED)
def test_a_sentence_is_said_where_its_fact_holds_and_only_there(fact: str) -> None:
    holds, does_not, words = NAMED[fact]
    name = ABOUT.get(fact, "best")
    assert words in facts(holds, name)[fact]
    assert fact not in facts(does_not, name)


@pytest.mark.gate
def test_no_sentence_is_without_such_a_pair_of_documents() -> None:
    """The facts are read from the source, so that a new sentence fails here until it has its pair."""
    source = inspect.getsource(why)
    pairs = re.findall(r'Said\(\s*"(\w+)"(?: if \w+ else "(\w+)")?', source)
    made = {fact for pair in pairs for fact in pair if fact}
    made |= {f + end for f in re.findall(r'compared\("(\w+)"', source) for end in ENDS}
    made |= {"step" + end for end in ENDS}
    made |= {f + end for f in re.findall(r'moved\("(\w+)"', source) for end in ("", "_identical")}
    assert {*CASES["numbers"], *CASES["steps"], *CASES["runs"]} == made
    assert set(CASES["others"]) == set(others.GROUPS)
    assert set(CASES["next"]) == set(
        re.findall(r'(?:change\(run, |Said\()"(\w+)"', inspect.getsource(advice))
    )


ALL = [case[i] for case in NAMED.values() for i in (0, 1)]


def commands(result: Doc) -> dict[str, str]:
    found = explain(result)["parts"]
    return {one["fact"]: one["command"] for part in found if part["key"] == "next" for one in part["said"]}


@pytest.mark.gate
def test_every_command_is_one_that_the_command_line_takes() -> None:
    made = {command for result in ALL for command in commands(result).values()}
    ours = [shlex.split(command) for command in made if command.startswith("karui ")]
    for words in ours:
        args = parser().parse_args(words[1:])
        assert all(str(parse_recipe(recipe)) == recipe for recipe in getattr(args, "recipe", []))
    assert len(ours) >= 10 and all(made)
    assert all(word not in words for words in ours for word in ("--out", "--json"))


def test_an_option_is_replaced_and_not_repeated() -> None:
    made = commands(doc(more=(OVER,)))["looser_budget"]
    assert made == "karui optimize examples/fashion/task.py:task --max-drop 4.08"


def test_from_python_the_advice_is_python() -> None:
    result = doc(("/command", "karui.optimize(...)"), ("/host/cores", 2), more=(OVER,))
    assert commands(result)["looser_budget"] == "karui.optimize(task, max_drop=4.08)"
    assert commands(result)["threads"] == "karui.optimize(task, karui.Target(threads=2))"


def test_a_bench_is_told_nothing_about_searching_or_budgets() -> None:
    found = commands(doc(("/command", "karui bench net.py:build --inputs 1x8"), ("/host/cores", 2)))
    assert found == {"threads": "karui bench net.py:build --inputs 1x8 --threads 2"}


def test_advice_already_taken_is_not_given_again() -> None:
    called = "karui optimize task.py:task --search 20 --pace thorough --max-drop 0.5"
    found = commands(doc(("/command", called), more=(one("fp32@openvino", 9.3),)))
    assert "full_width" not in found and "level" not in found


@pytest.mark.gate
@pytest.mark.parametrize("relative", [False, True])
def test_the_looser_budget_would_have_let_the_candidate_in(relative: bool) -> None:
    """Judged again by the judge itself, on the same samples, with the number that the advice gives."""
    rng = np.random.default_rng(3)
    before = (rng.random(900) < 0.92).astype(float)
    after = np.where(rng.random(900) < 0.05, 0.0, before)
    found = budget.judge(before, after, 0.005)
    assert found.verdict == "over"
    over = one(QUARTER, 15.0, quality=asdict(found), status="rejected")
    result = doc(more=(over,))
    if relative:
        result["budget"].update(max_drop=0.5, unit="relative", allowed=0.005 * before.mean())
        result["trials"][0]["quality"]["value"] = before.mean()
    option = shlex.split(commands(result)["looser_budget"])[-1]
    assert option.endswith("%") == relative
    drop, unit = budget.parse_drop(option)
    allowed = budget.Budget(drop, unit).allowed(float(before.mean()))
    assert budget.judge(before, after, allowed).verdict == "within"
    assert budget.judge(before, after, 0.7 * allowed).verdict != "within"


@pytest.mark.gate
@pytest.mark.parametrize("make", [sample.full, sample.nothing_met, sample.unlabelled, sample.regression])
def test_every_other_candidate_stands_in_exactly_one_group(make: Callable[[], Doc]) -> None:
    result = make()
    parts = [part for part in explain(result)["parts"] if part["key"] in others.GROUPS]
    named = sorted(one["recipe"] for part in parts for one in part["said"])
    best = explain(result)["recipe"]
    wanted = [entry["recipe"] for entry in (*result["trials"], *result["refused"])]
    assert named == sorted(recipe for recipe in wanted if recipe not in (best, EAGER))


def test_a_candidate_by_recipe_by_id_and_in_another_spelling() -> None:
    result = sample.full()
    by_id = explain(result, "aot_inductor-int8")
    assert by_id["role"] == "candidate" and by_id == explain(result, "int8@aot_inductor")
    assert explain(result, " int8[head=fp32]@openvino")["id"] == "openvino-int8-head"
    assert explain(doc(more=(one(HALF),)), HALF.replace("0.5", "0.50"))["recipe"] == HALF
    assert [part["key"] for part in by_id["parts"]][:2] == ["became", "numbers"]
    refused = explain(result, "fp32@executorch")
    assert refused["role"] == "refused" and "pip install 'karui[executorch]'" in text(refused)


@pytest.mark.gate
def test_an_unknown_name_is_answered_with_close_ones() -> None:
    with pytest.raises(UsageError) as caught:
        explain(sample.full(), "int8@onnxruntim")
    assert "int8@onnxruntime" in caught.value.fix
    with pytest.raises(UsageError, match="no recipe 'zzz'") as caught:
        explain(sample.full(), "zzz")
    assert EAGER in caught.value.fix


@pytest.mark.gate
def test_documents_with_anything_missing_are_explained_as_far_as_they_go() -> None:
    assert explain(sample.minimal())["role"] == explain({})["role"] == "nothing"
    whole = sample.full()
    for key in whole:
        assert text(explain({k: v for k, v in whole.items() if k != key}))
    for key in whole["trials"][1]:
        cut = sample.full()
        for entry in cut["trials"]:
            entry[key] = None
        for name in (
            ("best", "int8@aot_inductor", "fp16@onnxruntime") if key not in ("id", "recipe") else ("best",)
        ):
            assert text(explain(cut, name))


@pytest.mark.parametrize("width", [60, 100])
def test_lines_keep_to_their_width_but_for_commands(width: int) -> None:
    result = sample.full()
    lines = text(explain(result), width).splitlines()
    assert all(len(line) <= width or line.lstrip().startswith(("karui ", "pip ")) for line in lines)
    assert any("the same call with --search 20" in line for line in lines) == (width == 60)


def test_foreign_text_stays_on_its_line() -> None:
    result = sample.hostile("[bold]x\x1b[2J\r\nsecond")
    made = text(explain(result))
    assert "\x1b" not in made and "\r" not in made and "[bold]x [2J second" in made


def test_a_ratio_taken_side_by_side_decides_before_intervals_that_overlap() -> None:
    near = (f"{ORT}/speedup", speed(9.3, "faster"))
    assert "others/behind" in facts(doc(near))
    assert "others/level" in facts(doc(near, ("./speedup_same_runtime", None)))
    unsure = speed(1.0, SAME) | {"against": "onnxruntime-fp32"}
    assert "others/level" in facts(doc(("./speedup_same_runtime", unsure)))
    slower = speed(0.9, SLOW) | {"against": "onnxruntime-int8"}
    assert "others/slower_same" in facts(
        doc(more=(one("bf16@onnxruntime", 9.3, speedup_same_runtime=slower),))
    )


def test_long_recipes_keep_their_ends() -> None:
    recipe = f"prune_channels:macs=0.25 + finetune:steps=1000,batch=256,lr=0.001,seed=7 + {ORT}"
    made = text(explain(doc(more=(one(recipe, 2.0),))))
    assert "- prune_channels:macs=0.25 + finetune" in made and f"+ {ORT}: 2.00x" in made
    assert recipe not in made


def test_of_two_alike_the_simpler_is_only_named_where_it_is_simpler() -> None:
    simple = facts(doc(more=(one("fp32@openvino", 9.4),)))["numbers/tied"]
    assert simple == "fp32@openvino shows 9.40x [9.24, 9.58] against the original."


def test_the_resolution_is_that_of_the_bench() -> None:
    assert said.RESOLUTION == stats.RESOLUTION


def test_a_log_is_named_for_what_failed_and_for_nothing_else() -> None:
    assert facts(doc((f"{ORT}/status", "rejected"), (f"{ORT}/reason", "odd")))["others/rejected"] == "odd"
    unlogged = facts(doc((f"{ORT}/status", "failed"), (f"{ORT}/reason", "killed"), (f"{ORT}/log", None)))
    assert unlogged["others/failed"] == "killed"


def test_only_the_best_effort_is_called_so() -> None:
    assert "numbers/best_effort" not in facts(sample.nothing_met(), "fp32@openvino")
    assert explain(sample.nothing_met())["role"] == "best effort"


def test_a_search_is_proposed_where_one_share_differs_and_nothing_else() -> None:
    mild, harsh, odd = (
        f"prune_channels:macs={options} + fp32@onnxruntime"
        for options in ("0.5,multiple_of=8", "0.25,multiple_of=8", "0.25,multiple_of=4")
    )
    assert "next/between" in facts(doc(more=(one(mild, 7.0), one(harsh, 15.0, 0.03, "over"))))
    assert "next/between" not in facts(doc(more=(one(mild, 7.0), one(odd, 15.0, 0.03, "over"))))


def test_the_text_names_its_subject_and_the_others_once() -> None:
    lines = text(explain(sample.full())).splitlines()
    assert lines[2] == "int8@onnxruntime (best)"
    assert lines.count("Why not the others") == 1
    assert not any(
        "()" in line or "(nothing)" in line for line in text(explain(sample.minimal())).splitlines()
    )


def test_what_takes_more_than_one_command_to_install_is_told_in_words() -> None:
    both = "pip install 'karui[x]' and npm install y"
    result = doc(refused=(("fp32@x", f"not installed: {both}"), ("int8@x", f"not installed: {both}")))
    assert (
        facts(result)["next/missing"] == f"Not installed, so not tried: fp32@x and int8@x. It takes: {both}."
    )
    assert commands(result)["missing"] == ""

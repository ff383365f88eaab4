"""Scores: ties, labels out of range, structure, functions of the user's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from karui.errors import UsageError
from karui.score import SCORES, Score, evaluate, resolve

LOGITS = np.array([[0.1, 0.9, 0.0], [0.5, 0.5, 0.1], [0.0, 0.1, 0.2]], dtype=np.float32)


def test_top1_breaks_ties_like_argmax():
    labels = np.array([1, 0, 0])
    assert SCORES["top1"].function(LOGITS, labels).tolist() == (LOGITS.argmax(1) == labels).tolist()


def test_topk_counts_the_label_among_the_largest():
    assert SCORES["top5"].function(LOGITS, np.array([2, 2, 0])).tolist() == [1, 1, 1]


def test_nan_scores_are_wrong_answers():
    assert SCORES["top1"].function(np.full((2, 3), np.nan), np.array([0, 0])).tolist() == [0, 0]


def test_per_pixel_classes_are_averaged_per_sample():
    scores = np.random.default_rng(0).standard_normal((4, 3, 2, 2))
    labels = scores.argmax(1)
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 3
    assert SCORES["top1"].function(scores, labels).tolist() == [0.75, 1, 1, 1]


def test_logits_of_a_dict_and_first_of_a_tuple():
    labels = np.array([1, 0, 2])
    for outputs in ({"hidden": LOGITS * 0, "logits": LOGITS}, (LOGITS, LOGITS * 0)):
        assert SCORES["top1"].function(outputs, labels).sum() == 3


@pytest.mark.gate
@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (np.array([0, 1, 3]), "out of range"),
        (np.array([0, -1, 2]), "out of range"),
        (np.array([0.0, 1.0, 2.0]), "must be integers"),
        (np.array([[0], [1], [2]]), "do not fit"),
    ],
)
def test_labels_that_do_not_fit(labels, word):
    with pytest.raises(UsageError, match=word):
        SCORES["top1"].function(LOGITS, labels)


def test_mse_and_agreement():
    assert SCORES["mse"].function(LOGITS, LOGITS + 1).tolist() == pytest.approx([1, 1, 1])
    assert SCORES["agreement"].function(LOGITS, -LOGITS).sum() < 3
    assert SCORES["agreement"].function(LOGITS[:, :1], LOGITS[:, :1] + 1e-5).tolist() == [1, 1, 1]


def test_a_function_gets_torch_tensors():
    def error(outputs, targets):
        assert isinstance(outputs["a"], torch.Tensor)
        return (outputs["a"] - targets).abs().mean(1)

    found = resolve(error)
    assert found.name == "error"
    assert found.function({"a": LOGITS}, LOGITS).tolist() == [0, 0, 0]


def test_unknown_and_failing_scores():
    with pytest.raises(UsageError, match="no score 'top3'"):
        resolve("top3")
    with pytest.raises(UsageError, match="failed"):
        evaluate(resolve(lambda outputs, targets: 1 / 0), LOGITS, LOGITS, 3)
    with pytest.raises(UsageError, match="numbers for 3 samples"):
        evaluate(resolve(lambda outputs, targets: outputs[:2, 0]), LOGITS, LOGITS, 3)
    assert resolve(Score(min, "min")).name == "min"

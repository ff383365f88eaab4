"""Reading splits: every form a PyTorch user has, divided the same way each time, overlaps told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from karui.data import Split, items, overlaps, read_split, three_splits
from karui.errors import UsageError

X, Y = torch.arange(60.0).reshape(20, 3), torch.arange(20) % 4
FORMS = {
    "pair of tensors": (X, Y),
    "pair of arrays": (X.numpy(), Y.numpy()),
    "dataset": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=7),
    "list of batches": [(X[:12], Y[:12]), (X[12:], Y[12:])],
    "generator function": lambda: ((X[i : i + 5], Y[i : i + 5]) for i in range(0, 20, 5)),
    "batches of tuples": [((X,), Y)],
}


def read(data, names=("x",)):
    return read_split(list(items(data, "selection")), list(names), "selection")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_alike(form):
    split = read(FORMS[form])
    assert np.array_equal(split.inputs["x"], X.numpy())
    assert np.array_equal(split.targets, Y.numpy())


def test_batches_without_labels():
    assert read([X[:10], X[10:]]).targets is None
    alone, named = read(X), read({"b": Y, "a": X}, ("a", "b"))
    assert alone.targets is None and np.array_equal(alone.inputs["x"], X)
    assert list(named.inputs) == ["a", "b"] and len(named) == len(X) and named.targets is None


def test_several_inputs_by_position_and_by_name():
    by_position = read([((X, Y), Y)], ("a", "b"))
    by_name = read([({"b": Y, "a": X}, Y)], ("a", "b"))
    assert list(by_name.inputs) == ["a", "b"]
    assert np.array_equal(by_position.inputs["b"], by_name.inputs["b"])


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ([], "is empty"),
        ([(X[:0], Y[:0])], "is empty"),
        ([(X, Y), X], "only some batches"),
        ([(X, Y, Y)], "is not"),
        ([((X, Y), Y)], "do not fit the model"),
        ([({"z": X}, Y)], "do not fit the model"),
        ([(X, Y), (X[:, :2], Y)], "do not fit together"),
        (5, "could not be read"),
        (lambda: 1 / 0, "failed"),
    ],
)
def test_bad_data_says_what_is_wrong(data, word):
    with pytest.raises(UsageError, match=word):
        read(data)


def test_one_set_is_divided_deterministically_and_without_overlap():
    whole = read((X, Y))
    one, two = three_splits(None, whole, None, 0), three_splits(None, whole, None, 0)
    assert np.array_equal(one.confirm.inputs["x"], two.confirm.inputs["x"])
    assert len(one.calibrate) + len(one.select) + len(one.confirm) == 20
    assert overlaps(one.calibrate, one.select, one.confirm) == ()
    assert any("no calibration set" in note for note in one.notes)
    assert any("one validation set" in note for note in one.notes)


def test_overlap_is_told():
    whole = read((X, Y))
    found = three_splits(whole.take(slice(0, 5)), whole, whole.take(slice(3, 9)), 0)
    assert any("5 sample(s) stand in both the calibration and the selection" in note for note in found.notes)
    assert any("6 sample(s) stand in both the selection and the confirmation" in note for note in found.notes)


def test_too_few_to_divide():
    with pytest.raises(UsageError, match="is empty"):
        three_splits(None, Split({"x": X.numpy()[:1]}), None, 0)

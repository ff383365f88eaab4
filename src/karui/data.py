"""Splits as arrays: reading any iterable of batches, dividing one set, finding overlaps.

``Arrays`` maps input names to numpy arrays with samples along the first axis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.blame import users_code
from karui.errors import UsageError, foreign

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Arrays = dict[str, Array]

CALIBRATE_AT_MOST = 300  # samples taken when no calibration set is given
TARGETS = "targets"


@dataclass(frozen=True)
class Split:
    """Samples of one split: inputs by name, each (n, ...), and targets (n, ...) or None.

    rows: where the samples lie in the set that they were taken from, (n,), where that is known.
    """

    inputs: Arrays
    targets: Array | None = None
    rows: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()))) if self.inputs else 0

    def take(self, rows: Any) -> Split:
        """The samples at ``rows`` (a slice or an index array)."""
        targets = None if self.targets is None else self.targets[rows]
        places = None if self.rows is None else self.rows[rows]
        return Split({name: array[rows] for name, array in self.inputs.items()}, targets, places)

    def placed(self) -> Split:
        """The same as the whole of a set, so that what is taken from it tells its rows."""
        import numpy as np

        return Split(self.inputs, self.targets, np.arange(len(self)))


@dataclass(frozen=True)
class Splits:
    """The three disjoint splits, and what had to be said about them."""

    calibrate: Split
    select: Split
    confirm: Split
    notes: tuple[str, ...] = ()


def read_split(batches: Sequence[Any], names: Sequence[str], what: str) -> Split:
    """Join the ``batches`` (see ``items``) into one Split, inputs named ``names``.

    Raises UsageError for an empty set, for batches that are not (inputs, targets) or inputs, and
    for inputs that do not fit ``names``.
    """
    parts = [as_batch(item, names, what) for item in batches]
    if not sum(map(len, parts)):
        raise UsageError(f"the {what} set is empty", fix="give at least one batch of samples")
    if len({part.targets is None for part in parts}) > 1:
        raise UsageError(f"only some batches of the {what} set have targets")
    with foreign(UsageError, f"the batches of the {what} set do not fit together"):
        return join(parts)


def example_of(batches: Sequence[Any], what: str) -> Any:
    """The inputs of the first batch, as the user gave them."""
    if not batches:
        raise UsageError(f"the {what} set is empty", fix="give at least one batch of samples")
    item = batches[0]
    if isinstance(item, (tuple, list)) and len(item) in (1, 2) and is_inputs(item[0]):
        return item[0]
    return item


def join(batches: Sequence[Split]) -> Split:
    import numpy as np

    if len(batches) == 1:
        return batches[0]
    inputs = {name: np.concatenate([b.inputs[name] for b in batches]) for name in batches[0].inputs}
    labels = [batch.targets for batch in batches if batch.targets is not None]
    return Split(inputs, np.concatenate(labels) if labels else None)


def items(data: Any, what: str) -> Iterator[Any]:
    """The batches of ``data``; a pair of arrays is one batch, a Dataset is batched here."""
    if is_pair(data) or is_array(data) or isinstance(data, Mapping):  # all of it, with targets or without
        yield data
        return
    if callable(data) and not isinstance(data, Iterable):
        with users_code(UsageError, f"the function that makes the {what} set failed"):
            data = data()
    with users_code(
        UsageError,
        f"the {what} set could not be read",
        fix="give a Dataset, a pair of arrays, or an iterable of (inputs, targets) batches",
    ):
        yield from batched(data)


def batched(data: Any) -> Iterable[Any]:
    from torch.utils.data import DataLoader, Dataset

    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=256)
    batches: Iterator[Any] = iter(data)
    return batches


def is_pair(data: Any) -> bool:
    """Whether ``data`` is one (inputs, targets) pair rather than a list of batches."""
    return (
        isinstance(data, tuple)
        and len(data) == 2
        and is_inputs(data[0])
        and is_array(data[1])
        and rows_of(data[0]) == len(data[1])
    )


def is_inputs(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(map(is_array, value.values()))
    return is_array(value) or (isinstance(value, (tuple, list)) and bool(value) and all(map(is_array, value)))


def is_array(value: Any) -> bool:
    shape = getattr(value, "shape", None)
    return shape is not None and len(shape) > 0


def rows_of(inputs: Any) -> int:
    if isinstance(inputs, Mapping):
        inputs = next(iter(inputs.values()))
    return len(inputs[0]) if isinstance(inputs, (tuple, list)) else len(inputs)


def as_batch(item: Any, names: Sequence[str], what: str) -> Split:
    """One batch: ``(inputs, targets)``, or just inputs (a tensor or a dict)."""
    if isinstance(item, (tuple, list)) and len(item) == 2 and is_inputs(item[0]):
        return Split(as_arrays(item[0], names, what), as_array(item[1]))
    if isinstance(item, (tuple, list)) and len(item) == 1 and is_inputs(item[0]):
        item = item[0]
    if is_array(item) or isinstance(item, Mapping):
        return Split(as_arrays(item, names, what))
    raise UsageError(
        f"a batch of the {what} set is not (inputs, targets)",
        why=f"it is a {type(item).__name__}",
        fix="several inputs go into one tuple or dict: ((a, b), targets)",
    )


def as_arrays(inputs: Any, names: Sequence[str], what: str = "example") -> Arrays:
    """Inputs by name; a tensor or tuple takes the names in order."""
    if isinstance(inputs, Mapping):
        given = {str(key): as_array(value) for key, value in inputs.items()}
        if missing := set(names) ^ set(given):
            raise UsageError(
                f"the {what} inputs do not fit the model", why=f"different: {', '.join(sorted(missing))}"
            )
        arrays = {name: given[name] for name in names}
    else:
        parts = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
        if len(parts) != len(names):
            raise UsageError(
                f"the {what} inputs do not fit the model",
                why=f"{len(parts)} given, expected {len(names)}: {', '.join(names)}",
            )
        arrays = {name: as_array(part) for name, part in zip(names, parts, strict=True)}
    if len({len(array) for array in arrays.values()}) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise UsageError(f"the {what} inputs differ in batch size", why=shapes)
    return arrays


def as_array(value: Any) -> Array:
    """A numpy array in the machine's memory, from a tensor or an array-like."""
    import numpy as np

    detach = getattr(value, "detach", None)
    array = np.asarray(detach().cpu().numpy() if detach else value)
    if array.dtype == object:
        raise UsageError("ragged or mixed data cannot be batched", fix="pad the samples to one shape")
    return np.ascontiguousarray(array)


def three_splits(calibrate: Split | None, select: Split, confirm: Split | None, seed: int) -> Splits:
    """Fill in what was not given by dividing ``select``, and say so; warn about overlaps."""
    notes: list[str] = []
    parts = shuffled(len(select), seed)
    if calibrate is None:
        count = min(CALIBRATE_AT_MOST, len(select) // 4)
        calibrate, parts = replace(select.take(parts[:count]), targets=None), parts[count:]
        notes.append(f"no calibration set was given: {count} samples of the validation set serve")
    if confirm is None:
        half = len(parts) // 2
        confirm, parts = select.take(parts[half:]), parts[:half]
        notes.append(f"one validation set was given: {len(parts)} samples select, {len(confirm)} confirm")
    if len(parts) < len(select):
        select = select.take(parts)
    for what, part in (("calibration", calibrate), ("selection", select), ("confirmation", confirm)):
        if not len(part):
            raise UsageError(
                f"the {what} split is empty",
                why="the validation set is too small to divide",
                fix="give more samples, or each split by itself",
            )
    if len(calibrate) < 100:
        notes.append(f"{len(calibrate)} calibration sample(s): INT8 ranges may be poor; 300 are usual")
    return Splits(calibrate, select, confirm, (*notes, *overlaps(calibrate, select, confirm)))


def shuffled(n: int, seed: int) -> Array:
    import numpy as np

    return np.random.default_rng(seed).permutation(n)


def overlaps(calibrate: Split, select: Split, confirm: Split) -> tuple[str, ...]:
    """A sentence for each pair of splits that share samples."""
    sets = [
        ("calibration", rows_seen(calibrate)),
        ("selection", rows_seen(select)),
        ("confirmation", rows_seen(confirm)),
    ]
    pairs = [(sets[a], sets[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    found = ((one, two, len(seen & other)) for (one, seen), (two, other) in pairs)
    return tuple(
        f"{n} sample(s) stand in both the {one} and the {two} split: numbers may flatter"
        for one, two, n in found
        if n
    )


def rows_seen(split: Split) -> set[bytes]:
    def digest(row: int) -> bytes:
        state = hashlib.blake2b(digest_size=16)
        for array in split.inputs.values():
            state.update(array[row].tobytes())
        return state.digest()

    return {digest(row) for row in range(len(split))}


def fingerprint(split: Split) -> str:
    """A digest of all samples and targets of a split, in order."""
    state = hashlib.sha256()
    for name, array in sorted(split.inputs.items()):
        state.update(f"{name} {array.dtype} {array.shape}".encode())
        state.update(array.tobytes())
    if split.targets is not None:
        state.update(split.targets.tobytes())
    return state.hexdigest()


def save_arrays(arrays: Mapping[str, Array], folder: Path) -> None:
    """One ``.npy`` a name, numbered to keep the order."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, array) in enumerate(arrays.items()):
        np.save(folder / f"{i:02d}.{name}.npy", array, allow_pickle=False)


def open_arrays(folder: Path) -> Arrays:
    """What ``save_arrays`` wrote, memory-mapped."""
    import numpy as np

    files = sorted(folder.glob("*.npy"))
    return {f.name[3:-4]: np.load(f, mmap_mode="r", allow_pickle=False) for f in files}

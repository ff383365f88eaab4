"""A reference interpreter of Core ML programs: a saved package, operation by operation, in torch.

Core ML itself runs on Apple's systems only. What a package holds can be checked anywhere: this reads the file
back (graph, weights, their compressed forms) and computes what it says, in float32, rounding every value that
the program declares as fp16. It proves graph and weights, not Apple's kernels.

Source: "MIL operations", Core ML Tools 9 reference.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from karui.errors import Unsupported
from karui.graph.onnx import quiet

Args = Mapping[str, Any]


@final
class Package:
    """A saved ``.mlpackage`` as a function of tensors by name. Raises Unsupported for unknown operations."""

    def __init__(self, path: Path) -> None:
        main = read(path).functions["main"]
        self.outputs = list(main.outputs)
        self.operations = [op for op in main.operations if op.op_type != "const"]
        if unknown := sorted({op.op_type for op in self.operations if not known(op)}):
            raise Unsupported(
                f"the reference interpreter knows no {', '.join(unknown)}", fix="run it on macOS"
            )
        weights = [op for op in main.operations if is_stored(op)]
        self.constants = {op.outputs[0].name: constant(stored(op)) for op in weights}

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        values = {**self.constants, **inputs}
        for op in self.operations:
            if not is_stored(op):
                found = OPERATIONS[op.op_type](arguments(op, values))
                results = found if isinstance(found, (tuple, list)) else [found]
                values |= {out.name: rounded(value, out) for out, value in zip(op.outputs, results)}
        return [values[output.name] for output in self.outputs]


def read(path: Path) -> Any:
    """The program of a package, with its weights."""
    with quiet():
        tools = importlib.import_module("coremltools")
        load = importlib.import_module("coremltools.converters.mil.frontend.milproto.load").load
        model = tools.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        return load(spec, spec.specificationVersion, model.weights_dir)


def is_stored(op: Any) -> bool:
    """A weight, plain or compressed."""
    return bool(op.op_type == "const" or op.op_type.startswith("constexpr_"))


def known(op: Any) -> bool:
    return is_stored(op) or op.op_type in OPERATIONS


def stored(op: Any) -> Any:
    return op.outputs[0].val if op.op_type == "const" else op.materialized_val_inference()


def constant(value: Any) -> Any:
    """Floats as float32, integers as int64, words as they are."""
    if isinstance(value, (str, np.str_)):
        return str(value)
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return torch.tensor(array.astype(np.float32))
    return torch.tensor(array if array.dtype.kind == "b" else array.astype(np.int64))


def arguments(op: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What an operation is given, by name; what it is not given is left out."""

    def value_of(var: Any) -> Any:
        return values[var.name] if var.name in values else constant(var.val)

    found = {}
    for name, var in op.inputs.items():
        if isinstance(var, (tuple, list)):
            found[name] = [value_of(part) for part in var]
        elif var is not None:
            found[name] = value_of(var)
    return found


def rounded(value: Any, out: Any) -> Any:
    """As the program declares it: a value of fp16 has no more bits than that."""
    half = "fp16" in str(out.dtype) and isinstance(value, Tensor) and value.is_floating_point()
    return value.half().float() if half else value


def whole(value: Any) -> list[int]:
    return [int(one) for one in torch.as_tensor(value).reshape(-1)]


def number(args: Args, name: str, default: float = 0.0) -> float:
    return float(args[name]) if name in args else default


def flag(args: Args, name: str) -> bool:
    return bool(args[name]) if name in args else False


# --- products


def padding(args: Args, sizes: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Before and after, for each axis in space, in the order of ``F.pad``."""
    kind = args.get("pad_type", "valid")
    if kind == "custom":
        given = whole(args["pad"])
        pairs = [given[i : i + 2] for i in range(0, len(given), 2)]
    elif kind == "valid":
        pairs = [[0, 0] for _ in sizes]
    else:
        strides = whole(args.get("strides", torch.ones(len(sizes))))
        totals = [
            max((math.ceil(n / step) - 1) * step + size - n, 0)
            for n, step, size in zip(shape, strides, sizes)
        ]
        pairs = [[total // 2, total - total // 2] for total in totals]
    return [value for pair in reversed(pairs) for value in pair]


def conv(args: Args) -> Tensor:
    x, weight = args["x"], args["weight"]
    space = weight.ndim - 2
    ones = torch.ones(space)
    dilations, strides = whole(args.get("dilations", ones)), whole(args.get("strides", ones))
    reach = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations)]
    x = F.pad(x, padding(args, reach, x.shape[2:]))
    run: Any = (F.conv1d, F.conv2d, F.conv3d)[space - 1]
    groups = int(args.get("groups", 1))
    found: Tensor = run(x, weight, args.get("bias"), strides, 0, dilations, groups)
    return found


def conv_transpose(args: Args) -> Tensor:
    x, weight = args["x"], args["weight"]
    space = weight.ndim - 2
    ones = torch.ones(space)
    run: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[space - 1]
    dilations, groups = whole(args.get("dilations", ones)), int(args.get("groups", 1))
    y: Tensor = run(x, weight, args.get("bias"), whole(args.get("strides", ones)), 0, 0, groups, dilations)
    cut = padding(args, [1] * space, x.shape[2:])
    y = F.pad(y, [-amount for amount in cut])
    if "output_shape" in args:
        wanted = whole(args["output_shape"])[2:]
        y = F.pad(y, [v for n, size in reversed(list(zip(wanted, y.shape[2:]))) for v in (0, n - size)])
    return y


def matmul(args: Args) -> Tensor:
    x = args["x"].transpose(-1, -2) if flag(args, "transpose_x") else args["x"]
    y = args["y"].transpose(-1, -2) if flag(args, "transpose_y") else args["y"]
    return torch.matmul(x, y)


def attention(args: Args) -> Tensor:
    return F.scaled_dot_product_attention(args["query"], args["key"], args["value"], args.get("attn_mask"))


def lstm(args: Args) -> tuple[Tensor, Tensor, Tensor]:
    """x: (steps, rows, features). Gives all or the last hidden states, and the last hidden and cell."""
    both = args.get("direction", "forward") == "bidirectional"
    backwards = [args.get("direction") == "reverse"] + [True] * both
    count = len(backwards)
    states = zip(args["initial_h"].chunk(count, -1), args["initial_c"].chunk(count, -1))
    runs = [one_way(args, h, c, back, "_back" * i) for i, ((h, c), back) in enumerate(zip(states, backwards))]
    steps, hidden, cell = (torch.cat([run[i] for run in runs], -1) for i in range(3))
    return (steps if flag(args, "output_sequence") else hidden.unsqueeze(0)), hidden, cell


def one_way(args: Args, h: Tensor, c: Tensor, back: bool, suffix: str) -> tuple[Tensor, Tensor, Tensor]:
    """One direction. Weights: (4 * hidden, ...), gates in the order input, forget, output, cell."""
    into, over = args[f"weight_ih{suffix}"], args[f"weight_hh{suffix}"]
    bias = args.get(f"bias{suffix}", torch.zeros(len(into)))
    given = args["x"].flip(0) if back else args["x"]
    seen = []
    for step in given:
        i, f, o, z = (step @ into.T + h @ over.T + bias).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        seen.append(h)
    states = torch.stack(seen[::-1] if back else seen)
    return states, h, c


# --- pools, norms, activations


def max_pool(args: Args) -> Tensor:
    return pooled(args, F.max_pool1d, F.max_pool2d, F.max_pool3d, fill=-math.inf)


def avg_pool(args: Args) -> Tensor:
    total = pooled(args, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, fill=0.0)
    if not flag(args, "exclude_padding_from_average"):
        return total
    ones = {**args, "x": torch.ones_like(args["x"])}
    return total / pooled(ones, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, fill=0.0)


def pooled(args: Args, one: Any, two: Any, three: Any, *, fill: float) -> Tensor:
    sizes, x = whole(args["kernel_sizes"]), args["x"]
    strides = whole(args.get("strides", torch.ones(len(sizes))))
    x = F.pad(x, padding(args, sizes, x.shape[2:]), value=fill)
    run = (one, two, three)[len(sizes) - 1]
    found: Tensor = run(x, sizes, strides, 0, ceil_mode=flag(args, "ceil_mode"))
    return found


def batch_norm(args: Args) -> Tensor:
    epsilon = number(args, "epsilon", 1e-5)
    return F.batch_norm(
        args["x"], args["mean"], args["variance"], args.get("gamma"), args.get("beta"), eps=epsilon
    )


def layer_norm(args: Args) -> Tensor:
    x, axes = args["x"], sorted(axis % args["x"].ndim for axis in whole(args["axes"]))
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * (centred.square().mean(axes, keepdim=True) + number(args, "epsilon", 1e-5)).rsqrt()
    shape = [x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)]
    gamma, beta = args.get("gamma"), args.get("beta")
    normal = normal if gamma is None else normal * gamma.reshape(shape)
    return normal if beta is None else normal + beta.reshape(shape)  # type: ignore[no-any-return]


def gelu(args: Args) -> Tensor:
    mode = args.get("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return args["x"] * torch.sigmoid(1.702 * args["x"])  # type: ignore[no-any-return]
    return F.gelu(args["x"], approximate="none" if mode == "EXACT" else "tanh")


def reduced(args: Args, run: Callable[..., Any]) -> Any:
    axes = whole(args["axes"]) if "axes" in args else list(range(args["x"].ndim))
    return run(args["x"], axes, keepdim=flag(args, "keep_dims"))


# --- shapes


def slice_by_index(args: Args) -> Tensor:
    x, begin, end = args["x"], whole(args["begin"]), whole(args["end"])
    steps = whole(args.get("stride", torch.ones(len(begin))))
    none = torch.zeros(len(begin))
    begins, ends = whole(args.get("begin_mask", none)), whole(args.get("end_mask", none))
    for axis, single in enumerate(whole(args.get("squeeze_mask", none))):
        n = x.shape[axis]
        start = 0 if begins[axis] else begin[axis] % n if begin[axis] < 0 else begin[axis]
        stop = n if ends[axis] else end[axis] % n if end[axis] < 0 else end[axis]
        index = torch.tensor([start]) if single else torch.arange(start, min(stop, n), steps[axis])
        x = x.index_select(axis, index)
    squeezed = [axis for axis, single in enumerate(whole(args.get("squeeze_mask", none))) if single]
    return x.squeeze(squeezed) if squeezed else x  # type: ignore[no-any-return]


def gather(args: Args) -> Tensor:
    x, axis = args["x"], int(args.get("axis", 0))
    index = torch.as_tensor(args["indices"]).long() % x.shape[axis]
    shape = [*x.shape[:axis], *index.shape, *x.shape[axis % x.ndim + 1 :]]
    return x.index_select(axis, index.reshape(-1)).reshape(shape)  # type: ignore[no-any-return]


def reshape(args: Args) -> Tensor:
    x, shape = args["x"], whole(args["shape"])
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])  # type: ignore[no-any-return]


def split(args: Args) -> list[Tensor]:
    axis = int(args["axis"])
    if "split_sizes" in args:
        return list(args["x"].split(whole(args["split_sizes"]), axis))
    return list(args["x"].chunk(int(args["num_splits"]), axis))


def expand_dims(args: Args) -> Tensor:
    x = args["x"]
    for axis in sorted(axis % (x.ndim + len(whole(args["axes"]))) for axis in whole(args["axes"])):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def pad(args: Args) -> Tensor:
    given = whole(args["pad"])
    pairs = [given[i : i + 2] for i in range(0, len(given), 2)]
    order = [value for pair in reversed(pairs) for value in pair]
    mode = {"reflect": "reflect", "replicate": "replicate"}.get(args.get("mode", "constant"), "constant")
    value = number(args, "constant_val") if mode == "constant" else None
    return F.pad(args["x"], order, mode, value)


def concat(args: Args) -> Tensor:
    parts = [part.reshape(-1) if part.ndim == 0 else part for part in args["values"]]
    return torch.cat(parts, int(args["axis"]))


def squeeze(args: Args) -> Tensor:
    return args["x"].squeeze(whole(args["axes"]) if "axes" in args else None)  # type: ignore[no-any-return]


def cast(args: Args) -> Tensor:
    kind = args["dtype"]
    if kind.startswith("fp"):
        return args["x"].float()  # type: ignore[no-any-return]
    return args["x"].bool() if kind == "bool" else args["x"].long()  # type: ignore[no-any-return]


def of_one(run: Callable[[Tensor], Tensor]) -> Callable[[Args], Any]:
    return lambda args: run(args["x"])


def of_two(run: Callable[..., Tensor]) -> Callable[[Args], Any]:
    return lambda args: run(args["x"], args["y"])


ONE = {
    name: of_one(getattr(torch, name))
    for name in ("relu", "sigmoid", "tanh", "exp", "sqrt", "abs", "sign", "floor", "ceil", "round", "square",
                 "sin", "cos", "erf", "logical_not")
}  # fmt: skip
TWO: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "real_div": torch.true_divide,
    "floor_div": torch.floor_divide, "maximum": torch.maximum, "minimum": torch.minimum, "pow": torch.pow,
    "equal": torch.eq, "not_equal": torch.ne, "greater": torch.gt, "greater_equal": torch.ge,
    "less": torch.lt, "less_equal": torch.le,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or,
}  # fmt: skip
OPERATIONS: dict[str, Callable[[Args], Any]] = {
    **ONE,
    **{name: of_two(run) for name, run in TWO.items()},
    **{
        f"reduce_{name}": lambda args, run=run: reduced(args, run)  # type: ignore[misc]
        for name, run in {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin}.items()
    },
    "avg_pool": avg_pool, "batch_norm": batch_norm, "cast": cast, "concat": concat, "conv": conv,
    "conv_transpose": conv_transpose, "expand_dims": expand_dims, "gather": gather, "gelu": gelu,
    "layer_norm": layer_norm, "lstm": lstm, "matmul": matmul, "max_pool": max_pool, "pad": pad,
    "reshape": reshape, "scaled_dot_product_attention": attention, "slice_by_index": slice_by_index,
    "split": split, "squeeze": squeeze,
    "clip": lambda args: args["x"].clamp(number(args, "alpha"), number(args, "beta")),
    "elu": lambda args: F.elu(args["x"], number(args, "alpha", 1.0)),
    "fill": lambda args: torch.full(whole(args["shape"]), number(args, "value")),
    "identity": lambda args: args["x"],
    "inverse": lambda args: 1 / (args["x"] + number(args, "epsilon", 1e-4)),
    "leaky_relu": lambda args: F.leaky_relu(args["x"], number(args, "alpha", 0.01)),
    "linear": lambda args: F.linear(args["x"], args["weight"], args.get("bias")),
    "log": lambda args: torch.log(args["x"] + number(args, "epsilon", 1e-45)),
    "pixel_shuffle": lambda args: F.pixel_shuffle(args["x"], int(args["upscale_factor"])),
    "relu6": lambda args: args["x"].clamp(0, 6),
    "rsqrt": lambda args: torch.rsqrt(args["x"] + number(args, "epsilon", 1e-12)),
    "select": lambda args: torch.where(args["cond"].bool(), args["a"], args["b"]),
    "shape": lambda args: torch.tensor(args["x"].shape),
    "sigmoid_hard": lambda args: (number(args, "alpha") * args["x"] + number(args, "beta")).clamp(0, 1),
    "silu": lambda args: F.silu(args["x"]),
    "softmax": lambda args: torch.softmax(args["x"], int(args.get("axis", -1))),
    "softplus": lambda args: F.softplus(args["x"]),
    "stack": lambda args: torch.stack(args["values"], int(args["axis"])),
    "thresholded_relu": lambda args: torch.where(args["x"] >= number(args, "alpha", 1.0), args["x"], 0.0),
    "tile": lambda args: args["x"].repeat(whole(args["reps"])),
    "transpose": lambda args: args["x"].permute(whole(args["perm"])),
}  # fmt: skip

"""Layers that read units as matrix products, whatever convolution they are; and passes that go on midway."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from karui.graph.call import signature_of
from karui.graph.consumers import bias_of, find_consumers, inputs_of, matrix_of, outputs_of, store_matrix
from karui.graph.rerun import Rerun
from karui.graph.trace import trace, twin_of
from karui.graph.units import find_units

torch.set_num_threads(1)
LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "conv1d": (nn.Conv1d(6, 4, 3, stride=2, padding=2, dilation=2), (6, 90)),
    "conv2d": (nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(0, 1)), (6, 20, 9)),
    "conv2d in groups": (nn.Conv2d(6, 4, 3, groups=2), (6, 9, 9)),
    "conv2d that keeps the size": (nn.Conv2d(6, 4, (5, 3), padding="same"), (6, 9, 9)),
    "conv3d": (nn.Conv3d(6, 4, (1, 3, 2), stride=(1, 2, 1), padding=1, dilation=(2, 1, 1)), (6, 4, 9, 7)),
    "transposed 1d": (nn.ConvTranspose1d(6, 4, 4, stride=3, padding=2, output_padding=1), (6, 40)),
    "transposed 2d": (nn.ConvTranspose2d(6, 4, (3, 2), stride=2, padding=1, dilation=(2, 1)), (6, 9, 8)),
    "transposed 2d in groups": (nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2, output_padding=1), (6, 7, 7)),
    "transposed 3d": (nn.ConvTranspose3d(6, 4, 2, stride=(1, 2, 2)), (6, 3, 4, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_product_of_what_it_sees_and_its_matrix(name):
    layer, shape = LAYERS[name]
    net, x = nn.Sequential(layer).eval(), torch.randn(3, *shape)
    units = find_units(trace(net, *signature_of(net, x, 2)))
    graph = units.trace.graph
    (one,) = find_consumers(units)
    rows, wanted = inputs_of(one, x), outputs_of(one, layer(x))
    matrix = matrix_of(graph, one).clone()
    made = rows @ matrix.reshape(one.groups, -1, rows.shape[2]).transpose(1, 2)
    made = made + bias_of(graph, one).reshape(one.groups, 1, -1)
    assert made.shape == wanted.shape
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    store_matrix(graph, one, 2 * matrix)
    assert torch.equal(matrix_of(graph, one), 2 * matrix)


class InPlace(nn.Module):
    """Operations that write into what others read."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(8))

    def forward(self, x):
        kept = x
        for layer in self.layers:
            x = layer(x)
            y = x.relu_()
            y += kept
            kept = x * 1.5
        return x


@pytest.mark.parametrize("most_bytes", [1 << 20, 100, 0])
def test_a_pass_that_goes_on_midway_ends_as_one_from_the_start(most_bytes):
    torch.manual_seed(0)
    net, data = InPlace().eval(), [(torch.randn(4, 6),), (torch.randn(3, 6),)]
    graph = trace(net, *signature_of(net, data[0][0], 2)).graph
    runs, whole = Rerun(graph, data, most_bytes), twin_of(graph)
    paths = [f"model.layers.{i}.weight" for i in range(8)]
    for path in paths:
        settled = runs.first_read([graph.get_parameter(path)])
        for again in range(2):
            for net_now in (graph, whole):
                net_now.get_parameter(path).data.mul_(1 + again)
            for batch, inputs in enumerate(data):
                assert torch.equal(runs.answers(batch, settled)[0], whole(*inputs))
    nodes = sum(node.op.startswith("call") for node in graph.graph.nodes)
    every = 2 * len(paths) * len(data) * nodes
    assert runs.runs < 0.7 * every if most_bytes == 1 << 20 else runs.runs > 0.7 * every

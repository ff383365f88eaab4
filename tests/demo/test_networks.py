from __future__ import annotations

import pytest
import torch

from karui.demo import networks

PARAMETERS = {
    networks.MnistNet: 50_186,
    networks.FashionResNet: 77_754,
    networks.Mlp: 118_282,
    networks.LstmClassifier: 24_714,
    networks.TinyEncoder: 41_146,
}


@pytest.mark.parametrize("network", PARAMETERS, ids=lambda network: network.__name__)
def test_answers_do_not_depend_on_the_batch(network):
    torch.manual_seed(0)
    model = network().eval()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[network]
    images = torch.rand(5, 1, 28, 28)
    with torch.inference_mode():
        together = model(images)
        one_by_one = torch.cat([model(image[None]) for image in images])
    assert together.shape == (5, 10)
    torch.testing.assert_close(together, one_by_one)


@pytest.mark.parametrize("network", PARAMETERS, ids=lambda network: network.__name__)
def test_every_parameter_is_trained(network):
    model = network().train()
    model(torch.rand(4, 1, 28, 28)).logsumexp(1).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_example_has_the_same_network():
    import net

    ours, theirs = networks.MnistNet(), net.mnist_net()
    theirs.load_state_dict(ours.state_dict())
    assert [repr(layer) for layer in theirs] == [repr(layer) for layer in ours]

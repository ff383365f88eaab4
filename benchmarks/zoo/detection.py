"""Detectors: the blocks of the YOLO family, feature pyramids, and heads of literal sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, normal
from torch import nn

THEME = "detection"


class Conv(nn.Module):
    """The family's own: convolution, batch norm, SiLU."""

    def __init__(self, c1, c2, k=1, s=1, g=1, act=True):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(c2)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c1, c2, shortcut=True, e=0.5):
        super().__init__()
        c_ = int(c2 * e)
        self.cv1, self.cv2, self.add = Conv(c1, c_, 3), Conv(c_, c2, 3), shortcut and c1 == c2

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """YOLOv8: both halves of a chunk, and every block's output, side by side."""

    def __init__(self, c1, c2, n=1, e=0.5):
        super().__init__()
        self.c = int(c2 * e)
        self.cv1, self.cv2 = Conv(c1, 2 * self.c), Conv((2 + n) * self.c, c2)
        self.m = nn.ModuleList(Bottleneck(self.c, self.c, e=1.0) for _ in range(n))

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C2fSplit(C2f):
    def forward(self, x):
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3(nn.Module):
    """YOLOv5's CSP: two projections, one through blocks."""

    def __init__(self, c1, c2, n=1):
        super().__init__()
        c_ = c2 // 2
        self.cv1, self.cv2, self.cv3 = Conv(c1, c_), Conv(c1, c_), Conv(2 * c_, c2)
        self.m = nn.Sequential(*(Bottleneck(c_, c_, e=1.0) for _ in range(n)))

    def forward(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C3k2(C2f):
    """YOLO11: the blocks of a C2f are C3 modules."""

    def __init__(self, c1, c2, n=1):
        super().__init__(c1, c2, n)
        self.m = nn.ModuleList(C3(self.c, self.c, 2) for _ in range(n))


class CspStage(nn.Module):
    """CSPDarknet: one convolution cut in two by its own width."""

    def __init__(self, c1, c2):
        super().__init__()
        self.conv, self.block, self.out = Conv(c1, 20), Bottleneck(10, 10), Conv(20, c2)

    def forward(self, x):
        x = self.conv(x)
        split = x.shape[1] // 2
        return self.out(torch.cat([x[:, :split], self.block(x[:, split:])], dim=1))


class Elan(nn.Module):
    """YOLOv7: outputs at several depths, in reverse order."""

    def __init__(self, c1, c2):
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, 8), Conv(c1, 10)
        self.cv3, self.cv4 = nn.Sequential(Conv(10, 12, 3), Conv(12, 6, 3)), Conv(6, 9, 3)
        self.out = Conv(8 + 10 + 6 + 9, c2)

    def forward(self, x):
        outputs = [self.cv1(x), self.cv2(x)]
        outputs.append(self.cv3(outputs[-1]))
        outputs.append(self.cv4(outputs[-1]))
        return self.out(torch.cat(outputs[::-1], 1))


class Sppf(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c1 // 2), Conv(c1 // 2 * 4, c2)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class PixelAttention(nn.Module):
    """YOLO11's: queries and keys half as wide as values, channels before pixels, depthwise positions."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.head_dim, self.key_dim = heads, dim // heads, dim // heads // 2
        self.qkv = Conv(dim, dim + 2 * self.key_dim * heads, act=False)
        self.proj, self.pe = Conv(dim, dim, act=False), Conv(dim, dim, 3, g=dim, act=False)

    def forward(self, x):
        B, C, H, W = x.shape
        qkv = self.qkv(x).view(B, self.heads, self.key_dim * 2 + self.head_dim, H * W)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        share = (q.transpose(-2, -1) @ k * self.key_dim**-0.5).softmax(dim=-1)
        y = (v @ share.transpose(-2, -1)).view(B, C, H, W)
        return self.proj(y + self.pe(v.reshape(B, C, H, W)))


class C2psa(nn.Module):
    def __init__(self, c1, heads=2):
        super().__init__()
        self.c = c1 // 2
        self.cv1, self.cv2, self.attn = (
            Conv(c1, 2 * self.c),
            Conv(2 * self.c, c1),
            PixelAttention(self.c, heads),
        )
        self.ffn = nn.Sequential(Conv(self.c, self.c * 2), Conv(self.c * 2, self.c, act=False))

    def forward(self, x):
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        b = b + self.attn(b)
        return self.cv2(torch.cat((a, b + self.ffn(b)), 1))


class DistributionHead(nn.Module):
    """YOLOv8: box sides as expectations over ``bins`` places; the softmax is over outputs of the head."""

    def __init__(self, channels, classes=3, bins=4):
        super().__init__()
        self.classes, self.bins, self.outputs = classes, bins, classes + 4 * bins
        self.boxes = nn.ModuleList(
            nn.Sequential(Conv(c, 10, 3), nn.Conv2d(10, 4 * bins, 1)) for c in channels
        )
        self.scores = nn.ModuleList(
            nn.Sequential(Conv(c, 12, 3), nn.Conv2d(12, classes, 1)) for c in channels
        )
        self.register_buffer("places", torch.arange(bins, dtype=torch.float32))

    def forward(self, features):
        x = [torch.cat((box(f), score(f)), 1) for f, box, score in zip(features, self.boxes, self.scores)]
        x = torch.cat([level.view(level.shape[0], self.outputs, -1) for level in x], 2)
        box, score = x.split((4 * self.bins, self.classes), 1)
        rows, _, anchors = box.shape
        box = box.view(rows, 4, self.bins, anchors).transpose(2, 1).softmax(1)
        box = torch.einsum("bkca,k->bca", box, self.places)
        return torch.cat((box, score.sigmoid()), 1)


class Yolo(nn.Module):
    """Backbone, path aggregation and head of a tiny YOLOv8 or 11."""

    def __init__(self, block):
        super().__init__()
        self.stem, self.stage1 = Conv(3, 8, 3, 2), block(8, 12)
        self.down, self.stage2, self.sppf = Conv(12, 16, 3, 2), block(16, 16), Sppf(16, 20)
        self.up, self.top = nn.Upsample(None, 2, "nearest"), block(20 + 12, 12)
        self.again, self.bottom = Conv(12, 10, 3, 2), block(10 + 20, 16)
        self.detect = DistributionHead((12, 16))

    def forward(self, x):
        p2 = self.stage1(self.stem(x))
        p3 = self.sppf(self.stage2(self.down(p2)))
        p2 = self.top(torch.cat([self.up(p3), p2], 1))
        p3 = self.bottom(torch.cat([self.again(p2), p3], 1))
        return self.detect([p2, p3])


class ImplicitHead(nn.Module):
    """YOLOR: learned constants added before and multiplied after, (1, C, 1, 1)."""

    def __init__(self, anchors=2, outputs=6):
        super().__init__()
        self.anchors, self.outputs = anchors, outputs
        self.stem, self.conv, self.out = (
            Conv(3, 12, 3),
            Conv(12, 18, 3, 2),
            nn.Conv2d(18, anchors * outputs, 1),
        )
        self.added = nn.Parameter(torch.zeros(1, 18, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, anchors * outputs, 1, 1))

    def forward(self, x):
        x = self.scale * self.out(self.added + self.conv(self.stem(x)))
        rows, _, height, width = x.shape
        return x.view(rows, self.anchors, self.outputs, height, width).permute(0, 1, 3, 4, 2).contiguous()


class DecoupledHead(nn.Module):
    """YOLOX: one stem, three outputs, flattened and joined over the levels."""

    def __init__(self):
        super().__init__()
        self.backbone, self.down = Conv(3, 10, 3, 2), Conv(10, 14, 3, 2)
        self.stems = nn.ModuleList([Conv(10, 12), Conv(14, 12)])
        self.scores, self.boxes = Conv(12, 16, 3), Conv(12, 8, 3)  # shared between levels
        self.score, self.box, self.sure = nn.Conv2d(16, 3, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        first = self.backbone(x)
        outputs = []
        for stem, feature in zip(self.stems, (first, self.down(first))):
            feature = stem(feature)
            box = self.boxes(feature)
            output = torch.cat([self.box(box), self.sure(box), self.score(self.scores(feature))], 1)
            outputs.append(output.flatten(start_dim=2))
        return torch.cat(outputs, dim=2).permute(0, 2, 1)


class Ssd(nn.Module):
    """Channels last, literal sizes, and a learned scale over unit-length features."""

    def __init__(self):
        super().__init__()
        self.first, self.second = conv_bn_relu(3, 12, stride=2), conv_bn_relu(12, 20, stride=2)
        self.scale = nn.Parameter(torch.full((1, 12, 1, 1), 20.0))
        self.boxes = nn.ModuleList([nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(20, 8, 3, padding=1)])
        self.scores = nn.ModuleList([nn.Conv2d(12, 6, 3, padding=1), nn.Conv2d(20, 6, 3, padding=1)])

    def forward(self, x):
        first = self.first(x)
        features = (F.normalize(first, dim=1) * self.scale, self.second(first))
        boxes = [
            box(f).permute(0, 2, 3, 1).reshape(-1, 2 * f[0, 0].numel(), 4)
            for f, box in zip(features, self.boxes)
        ]
        scores = [
            s(f).permute(0, 2, 3, 1).reshape(-1, 2 * f[0, 0].numel(), 3)
            for f, s in zip(features, self.scores)
        ]
        return torch.cat(boxes, 1), torch.cat(scores, 1).softmax(-1)


def between(block):
    """A network around ``block(inputs, outputs)``."""
    return lambda: nn.Sequential(Conv(3, 10, 3), block(10, 20), Conv(20, 14, 3, 2), classifier(14))


IMAGE, SMALL = normal((3, 16, 16)), normal((3, 8, 8))
CASES = (
    Case("c2f", THEME, between(lambda c1, c2: C2f(c1, c2, 2)), SMALL),
    Case("c2f_split", THEME, between(lambda c1, c2: C2fSplit(c1, c2, 2)), SMALL),
    Case("c3", THEME, between(C3), SMALL),
    Case("c3k2", THEME, between(C3k2), SMALL),
    Case("csp_stage", THEME, between(CspStage), SMALL),
    Case("elan", THEME, between(Elan), SMALL),
    Case("sppf", THEME, between(Sppf), SMALL),
    Case("c2psa", THEME, lambda: nn.Sequential(Conv(3, 24, 3), C2psa(24), classifier(24)), SMALL),
    Case("yolo_v8", THEME, lambda: Yolo(C2f), IMAGE),
    Case("yolo_11", THEME, lambda: Yolo(C3k2), IMAGE),
    Case("implicit_head", THEME, ImplicitHead, SMALL),
    Case("decoupled_head", THEME, DecoupledHead, SMALL),
    Case("ssd", THEME, Ssd, SMALL),
)

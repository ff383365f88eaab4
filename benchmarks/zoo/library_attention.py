"""Attention by the modules of torch itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from benchmarks.zoo.attention import wrapped
from benchmarks.zoo.case import Case, normal, tokens
from torch import nn

THEME = "library_attention"


class SelfMha(nn.Module):
    """``nn.MultiheadAttention`` as users call it."""

    def __init__(self, width, heads, need_weights, causal=False, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, **options)
        self.need_weights, self.causal = need_weights, causal

    def forward(self, x):
        if not self.attention.batch_first:
            x = x.transpose(0, 1)
        mask = None
        if self.causal:
            mask = nn.Transformer.generate_square_subsequent_mask(6, device=x.device)
        y, _ = self.attention(x, x, x, attn_mask=mask, need_weights=self.need_weights)
        return y if self.attention.batch_first else y.transpose(0, 1)


class CrossMha(nn.Module):
    """``nn.MultiheadAttention`` with ``kdim`` and ``vdim``."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 20), nn.Linear(10, 14), nn.Linear(10, 18)
        self.attention = nn.MultiheadAttention(20, 4, kdim=14, vdim=18, batch_first=True)
        self.head = nn.Linear(20, 5)

    def forward(self, x, context):
        y, _ = self.attention(self.query(x), self.key(context), F.relu(self.value(context)))
        return self.head(y.mean(1))


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` between two layers."""

    def __init__(self, layers, **options):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 20), nn.Linear(20, 5)
        layer = nn.TransformerEncoderLayer(20, 4, 28, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


class PaddedEncoder(nn.Module):
    """Token embedding, sinusoidal positions, a mask of what is padding."""

    def __init__(self, width=20):
        super().__init__()
        self.embedding = nn.Embedding(30, width, padding_idx=0)
        place, rate = (
            torch.arange(12)[:, None],
            torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width)),
        )
        positions = torch.zeros(12, width)
        positions[:, 0::2], positions[:, 1::2] = torch.sin(place * rate), torch.cos(place * rate)
        self.register_buffer("positions", positions)
        layer = nn.TransformerEncoderLayer(width, 4, 24, activation="gelu", norm_first=True, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, 5)

    def forward(self, ids):
        x = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim) + self.positions[: ids.shape[1]]
        return self.head(self.encoder(x, src_key_padding_mask=ids == 0)[:, -1])


class Decoder(nn.Module):
    """``nn.TransformerDecoderLayer`` over a memory of another width."""

    def __init__(self):
        super().__init__()
        self.target, self.memory, self.head = nn.Linear(8, 20), nn.Linear(10, 20), nn.Linear(20, 5)
        self.decoder = nn.TransformerDecoderLayer(20, 4, 28, batch_first=True)

    def forward(self, target, memory):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.decoder(self.target(target), self.memory(memory), tgt_mask=mask))


VECTORS, TWO = normal((6, 8)), normal((6, 8), (9, 10))
CASES = (
    Case("mha", THEME, wrapped(lambda: SelfMha(24, 4, True, batch_first=True)), VECTORS),
    Case("mha_sequence_first", THEME, wrapped(lambda: SelfMha(24, 3, False)), VECTORS),
    Case("mha_causal", THEME, wrapped(lambda: SelfMha(24, 4, False, causal=True, batch_first=True)), VECTORS),
    Case("mha_no_bias", THEME, wrapped(lambda: SelfMha(24, 2, False, bias=False, batch_first=True)), VECTORS),
    Case(
        "mha_bias_kv",
        THEME,
        wrapped(lambda: SelfMha(24, 4, False, add_bias_kv=True, batch_first=True)),
        VECTORS,
    ),
    Case("mha_kdim_vdim", THEME, CrossMha, TWO),
    Case("encoder", THEME, lambda: Encoder(2), VECTORS, exact=False),
    Case(
        "encoder_norm_first",
        THEME,
        lambda: Encoder(1, norm_first=True, activation="gelu"),
        VECTORS,
        exact=False,
    ),
    Case("encoder_no_bias", THEME, lambda: Encoder(1, bias=False), VECTORS, exact=False),
    Case("encoder_padded", THEME, PaddedEncoder, tokens(30, 9), exact=False),
    Case("decoder_layer", THEME, Decoder, normal((5, 8), (7, 10)), exact=False),
)

"""Attention in its many spellings, without norms, so that what goes wrong is attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, normal
from torch import nn

THEME = "attention"


class Wrapped(nn.Module):
    """Embedding, attention with a skip, a small MLP, a head over the mean token."""

    def __init__(self, attention, width=24):
        super().__init__()
        self.embed, self.attention = nn.Linear(8, width), attention
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.attention(x)
        x = x + self.mlp(x)
        return self.head(x.mean(1))


class FusedQkv(nn.Module):
    """timm's: one layer for q, k and v, head size from the width of the input."""

    def __init__(self, width, num_heads, scale=None):
        super().__init__()
        self.num_heads, self.scale = num_heads, scale or (width // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        share = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((share @ v).transpose(1, 2).reshape(B, N, C))


class FusedChunk(nn.Module):
    """nanoGPT's: split, view and a causal mask; torch takes the scale from the head size."""

    def __init__(self, width, heads):
        super().__init__()
        self.width, self.heads = width, heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.width, dim=2)
        q, k, v = (y.view(B, T, self.heads, C // self.heads).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class SeparateQkv(nn.Module):
    """BERT's: three layers, scale from the head size."""

    def __init__(self, width, heads, head_dim):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.query, self.key = nn.Linear(width, heads * head_dim), nn.Linear(width, heads * head_dim)
        self.value, self.out = nn.Linear(width, heads * head_dim), nn.Linear(heads * head_dim, width)

    def apart(self, x):
        return x.view(*x.shape[:2], self.heads, self.head_dim).permute(0, 2, 1, 3)

    def forward(self, x):
        q, k, v = self.apart(self.query(x)), self.apart(self.key(x)), self.apart(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.head_dim)
        context = torch.matmul(F.softmax(scores, dim=-1), v).permute(0, 2, 1, 3).contiguous()
        return self.out(context.view(*context.shape[:2], self.heads * self.head_dim))


class LiteralHeads(SeparateQkv):
    """The number of heads stands in the code, the head size is inferred."""

    def forward(self, x):
        q, k, v = (layer(x).reshape(x.shape[0], -1, 4, 6) for layer in (self.query, self.key, self.value))
        q = q / q.shape[-1] ** 0.5
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k)
        return self.out(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2))


class LiteralHeadDim(SeparateQkv):
    """The head size stands in the code, the number of heads is inferred."""

    def forward(self, x):
        q, k, v = (
            layer(x).unflatten(-1, (-1, 6)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, scale=6**-0.5)
        return self.out(y.transpose(1, 2).flatten(2))


class WiderValues(nn.Module):
    """Values of another head size than queries and keys."""

    def __init__(self, width, heads, key_dim, value_dim):
        super().__init__()
        self.heads, self.sizes = heads, [key_dim, key_dim, value_dim]
        self.qkv = nn.Linear(width, heads * sum(self.sizes), bias=False)
        self.out = nn.Linear(heads * value_dim, width)

    def forward(self, x):
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, self.heads, -1).split(self.sizes, dim=-1)
        q, k, v = q.transpose(1, 2), k.permute(0, 2, 3, 1), v.transpose(1, 2)
        share = (q @ k * self.sizes[0] ** -0.5).softmax(-1)
        return self.out((share @ v).transpose(1, 2).reshape(B, N, -1))


class GroupedQuery(nn.Module):
    """Llama's: several query heads share one of keys and values; with one of these, multi-query attention."""

    def __init__(self, width, heads, kv_heads, head_dim, rotary=False):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.rotary = heads, kv_heads, head_dim, rotary
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)
        rates = 10000 ** (-torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.outer(torch.arange(16), rates)
        self.register_buffer("angles", torch.cat([angles, angles], -1), persistent=False)

    def rotated(self, x):
        angles = self.angles[: x.shape[2]]
        one, two = x[..., : self.head_dim // 2], x[..., self.head_dim // 2 :]
        return x * angles.cos() + torch.cat([-two, one], -1) * angles.sin()

    def forward(self, x):
        B, N, _ = x.shape
        q = self.q_proj(x).view(B, N, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, N, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, N, self.kv_heads, self.head_dim).transpose(1, 2)
        if self.rotary:
            q, k = self.rotated(q), self.rotated(k)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, N, -1))


class ExpandedQuery(GroupedQuery):
    """Hugging Face's repeat_kv: expand and reshape."""

    def forward(self, x):
        B, N, _ = x.shape
        q = self.q_proj(x).view(B, N, -1, self.head_dim).transpose(1, 2)
        k, v = (
            layer(x)
            .view(B, N, -1, self.head_dim)
            .transpose(1, 2)[:, :, None]
            .expand(B, self.kv_heads, self.heads // self.kv_heads, N, self.head_dim)
            .reshape(B, self.heads, N, self.head_dim)
            for layer in (self.k_proj, self.v_proj)
        )
        share = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(self.head_dim), dim=-1)
        return self.o_proj((share @ v).transpose(1, 2).reshape(B, N, -1))


class Cross(nn.Module):
    """Queries from one input, keys and values from another of another width."""

    def __init__(self, heads=3):
        super().__init__()
        self.heads = heads
        self.embed, self.q, self.kv = nn.Linear(8, 20), nn.Linear(20, 18), nn.Linear(10, 36)
        self.out, self.head = nn.Linear(18, 20), nn.Linear(20, 5)

    def forward(self, x, context):
        x = self.embed(x)
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(F.relu(x + self.out(y)).mean(1))


class LinearAttention(nn.Module):
    """Keys and values are summed over tokens first; a feature map takes the place of the softmax."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in self.qkv(x).chunk(3, dim=-1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = torch.einsum("bnhd,bnhe->bhde", k, v)
        total = torch.einsum("bnhd,bhd->bnh", q, k.sum(1))
        return self.out((torch.einsum("bnhd,bhde->bnhe", q, context) / total[..., None]).flatten(2))


class ChannelAttention(nn.Module):
    """XCiT: attention between channels, each scaled to unit length over the tokens."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.out((scores.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(B, N, C))


class TalkingHeads(FusedQkv):
    """CaiT: a Linear over the axis of heads, before and after the softmax."""

    def __init__(self, width, num_heads):
        super().__init__(width, num_heads)
        self.before, self.after = nn.Linear(num_heads, num_heads), nn.Linear(num_heads, num_heads)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.before((q * self.scale @ k.transpose(-2, -1)).permute(0, 2, 3, 1))
        share = self.after(scores.softmax(dim=2)).permute(0, 3, 1, 2)
        return self.proj((share @ v).transpose(1, 2).reshape(B, N, C))


class RelativeBias(FusedQkv):
    """Swin: a learned bias per head and distance."""

    def __init__(self, width, num_heads, tokens=6):
        super().__init__(width, num_heads)
        self.table = nn.Parameter(torch.zeros(2 * tokens - 1, num_heads))
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens) + tokens - 1
        self.register_buffer("distance", distance)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.distance].permute(2, 0, 1)
        share = (q @ k.transpose(-2, -1) * self.scale + bias).softmax(-1)
        return self.proj((share @ v).transpose(1, 2).reshape(B, N, C))


class AttentionPool(nn.Module):
    """A learned score per token weighs the mean."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.score = (
            nn.Linear(8, 20),
            nn.Linear(20, 12),
            nn.Linear(12, 1, bias=False),
        )
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(self.embed(x))
        share = F.softmax(self.score(torch.tanh(self.hidden(x))), dim=1)
        return self.head((x * share).sum(dim=1))


class LatentQueries(nn.Module):
    """Perceiver: learned queries read from the tokens."""

    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 4, 14))
        self.kv, self.q, self.head = nn.Linear(8, 2 * 12), nn.Linear(14, 12), nn.Linear(4 * 12, 5)

    def forward(self, x):
        k, v = self.kv(x).chunk(2, dim=-1)
        q = self.q(self.latents).expand(x.shape[0], -1, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).flatten(1))


class NonLocal(nn.Module):
    """Attention over pixels with 1x1 convolutions, the dot product divided by the number of places."""

    def __init__(self, width=16, inner=10):
        super().__init__()
        self.stem, self.head = conv_bn_relu(3, width), classifier(width)
        self.theta, self.phi, self.g = (nn.Conv2d(width, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, width, 1)

    def forward(self, x):
        x = self.stem(x)
        rows, _, height, width = x.shape
        theta, phi, g = self.theta(x).flatten(2), self.phi(x).flatten(2), self.g(x).flatten(2)
        scores = torch.bmm(theta.transpose(1, 2), phi) / (height * width)
        y = torch.bmm(scores, g.transpose(1, 2)).permute(0, 2, 1).reshape(rows, -1, height, width)
        return self.head(x + self.out(y))


def wrapped(attention):
    return lambda: Wrapped(attention())


TOKENS, TWO = normal((6, 8)), normal((6, 8), (9, 10))
CASES = (
    Case("fused_qkv_fixed_scale", THEME, wrapped(lambda: FusedQkv(24, 4, 0.5)), TOKENS),
    Case("fused_qkv", THEME, wrapped(lambda: FusedQkv(24, 3)), TOKENS),
    Case("fused_qkv_causal", THEME, wrapped(lambda: FusedChunk(24, 4)), TOKENS),
    Case("separate_qkv", THEME, wrapped(lambda: SeparateQkv(24, 3, 10)), TOKENS),
    Case("literal_num_heads", THEME, wrapped(lambda: LiteralHeads(24, 4, 6)), TOKENS),
    Case("literal_head_dim", THEME, wrapped(lambda: LiteralHeadDim(24, 4, 6)), TOKENS),
    Case("wider_values", THEME, wrapped(lambda: WiderValues(24, 3, 6, 10)), TOKENS),
    Case("grouped_query", THEME, wrapped(lambda: GroupedQuery(24, 6, 2, 4)), TOKENS),
    Case("grouped_query_expanded", THEME, wrapped(lambda: ExpandedQuery(24, 4, 2, 8)), TOKENS),
    Case("multi_query", THEME, wrapped(lambda: GroupedQuery(24, 4, 1, 6)), TOKENS),
    Case("rotary", THEME, wrapped(lambda: GroupedQuery(24, 4, 2, 6, rotary=True)), TOKENS),
    Case("cross_attention", THEME, Cross, TWO),
    Case("linear_attention", THEME, wrapped(lambda: LinearAttention(24, 3)), TOKENS),
    Case(
        "channel_attention", THEME, wrapped(lambda: ChannelAttention(24, 4)), TOKENS, exact=False
    ),  # softmax
    Case("talking_heads", THEME, wrapped(lambda: TalkingHeads(24, 4)), TOKENS),
    Case("relative_bias", THEME, wrapped(lambda: RelativeBias(24, 4)), TOKENS),
    Case("attention_pool", THEME, AttentionPool, TOKENS),
    Case("latent_queries", THEME, LatentQueries, TOKENS),
    Case("non_local", THEME, NonLocal, normal((3, 8, 8))),
)

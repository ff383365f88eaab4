"""Whole blocks: transformers, MLP mixers and their kin, with their norms and positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.attention import FusedQkv, GroupedQuery
from benchmarks.zoo.case import Case, normal, tokens
from torch import nn

THEME = "transformers"


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class VitBlock(nn.Module):
    def __init__(self, width, heads, hidden, norm=nn.LayerNorm):
        super().__init__()
        self.norm1, self.attn = norm(width), FusedQkv(width, heads)
        self.norm2, self.mlp = norm(width), Mlp(width, hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patch embedding, class token, learned positions."""

    def __init__(self, norm, width=24):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, width))
        self.blocks = nn.Sequential(VitBlock(width, 4, 20, norm), VitBlock(width, 3, 32, norm))
        self.norm, self.head = norm(width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class PatchClassifier(nn.Module):
    """Class token and positions with nothing but MLPs behind them."""

    def __init__(self, width=20):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, width))
        self.mlp, self.head = Mlp(width, 28), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.repeat(x.shape[0], 1, 1), x], dim=1) + self.pos_embed
        x = x + self.mlp(x)
        return self.head(torch.tanh(x[:, 0] + x[:, 1:].mean(1)))


class Llama(nn.Module):
    """RMSNorm, grouped-query attention with rotary positions, SwiGLU; the head is its own layer."""

    def __init__(self, width=24, hidden=28):
        super().__init__()
        self.embed_tokens = nn.Embedding(30, width)
        self.norm1, self.attention = nn.RMSNorm(width, eps=1e-5), GroupedQuery(width, 4, 2, 6, rotary=True)
        self.norm2, self.norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.gate_proj, self.up_proj = (
            nn.Linear(width, hidden, bias=False),
            nn.Linear(width, hidden, bias=False),
        )
        self.down_proj, self.lm_head = nn.Linear(hidden, width, bias=False), nn.Linear(width, 30, bias=False)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        x = x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))
        return self.lm_head(self.norm(x))


class Gpt(nn.Module):
    """Learned positions looked up by a range; the head shares the token embedding."""

    def __init__(self, width=24):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(30, width), nn.Embedding(12, width)
        self.block, self.norm = VitBlock(width, 3, 28), nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 30, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.lm_head(self.norm(self.block(self.wte(ids) + self.wpe(places))))


class MixerBlock(nn.Module):
    """One MLP over tokens, one over channels."""

    def __init__(self, tokens, width, norm):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.across, self.within = Mlp(tokens, 14), Mlp(width, 28)

    def forward(self, x):
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, norm, width=20):
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.block, self.head = MixerBlock(4, width, norm), nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.block(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


class ResMlpAffine(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return torch.addcmul(self.beta, self.alpha, x)


class Gmlp(nn.Module):
    """Half of the hidden units gate the other half, through a Linear over tokens."""

    def __init__(self, norm, width=16, hidden=20, tokens=6):
        super().__init__()
        self.embed, self.up, self.down = (
            nn.Linear(8, width),
            nn.Linear(width, hidden * 2),
            nn.Linear(hidden, width),
        )
        self.norm, self.spatial, self.head = norm(hidden), nn.Conv1d(tokens, tokens, 1), nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        u, v = F.gelu(self.up(x)).chunk(2, dim=-1)
        x = x + self.down(u * self.spatial(self.norm(v)))
        return self.head(x.mean(1))


class ConvNext(nn.Module):
    """Depthwise, norm and two Linears with channels last, layer scale, skip."""

    def __init__(self, norm, width=14):
        super().__init__()
        self.stem, self.dwconv = (
            nn.Conv2d(3, width, 2, 2),
            nn.Conv2d(width, width, 5, padding=2, groups=width),
        )
        self.norm, self.pwconv1, self.pwconv2 = norm(width), nn.Linear(width, 24), nn.Linear(24, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))
        self.head_norm, self.head = norm(width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(self.head_norm(x.mean([-2, -1])))


class ConvMixer(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(3, width, 2, 2), nn.GELU(), nn.BatchNorm2d(width))
        self.depthwise = nn.Sequential(
            nn.Conv2d(width, width, 3, padding="same", groups=width), nn.GELU(), nn.BatchNorm2d(width)
        )
        self.pointwise = nn.Sequential(nn.Conv2d(width, 20, 1), nn.GELU(), nn.BatchNorm2d(20))
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.embed(x)
        return self.head(self.pointwise(x + self.depthwise(x)).mean((2, 3)))


class PoolFormer(nn.Module):
    """Pooling minus identity mixes the tokens."""

    def __init__(self, width=16):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, width, 2, 2), nn.Linear(width, 5)
        self.mlp = nn.Sequential(nn.Conv2d(width, 24, 1), nn.GELU(), nn.Conv2d(24, width, 1))
        self.scale1, self.scale2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x):
        x = self.embed(x)
        x = x + self.scale1[:, None, None] * (F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x)
        x = x + self.scale2[:, None, None] * self.mlp(x)
        return self.head(x.mean((2, 3)))


class SpatialReduction(nn.Module):
    """PVT: keys and values come from a strided convolution over tokens made an image again."""

    def __init__(self, width=20, heads=2):
        super().__init__()
        self.embed, self.head, self.heads = nn.Conv2d(3, width, 2, 2), nn.Linear(width, 5), heads
        self.q, self.kv, self.reduce = (
            nn.Linear(width, width),
            nn.Linear(14, 2 * width),
            nn.Conv2d(width, 14, 2, 2),
        )
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.heads, C // self.heads).permute(0, 2, 1, 3)
        small = self.reduce(x.permute(0, 2, 1).reshape(B, C, 4, 4)).reshape(B, 14, -1).permute(0, 2, 1)
        k, v = self.kv(F.gelu(small)).reshape(B, -1, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C)
        return self.head((x + self.proj(y)).mean(1))


def none(width):
    return nn.Identity()


def rms(width):
    return nn.RMSNorm(width, eps=1e-5)


SMALL, VECTORS = normal((3, 8, 8)), normal((6, 8))
CASES = (
    Case("patch_cls_pos", THEME, PatchClassifier, SMALL),
    Case("vit", THEME, lambda: VisionTransformer(nn.LayerNorm), SMALL, exact=False),
    Case("vit_rms", THEME, lambda: VisionTransformer(rms), SMALL),
    Case("vit_no_norm", THEME, lambda: VisionTransformer(none), SMALL),
    Case("llama", THEME, Llama, tokens(30, 7)),
    Case("gpt_tied", THEME, Gpt, tokens(30, 7), exact=False),
    Case("mlp_mixer", THEME, lambda: Mixer(nn.LayerNorm), SMALL, exact=False),
    Case("mlp_mixer_no_norm", THEME, lambda: Mixer(none), SMALL),
    Case("resmlp_affine", THEME, lambda: Mixer(ResMlpAffine), SMALL),
    Case("gmlp", THEME, lambda: Gmlp(nn.LayerNorm), VECTORS, exact=False),
    Case("gmlp_no_norm", THEME, lambda: Gmlp(none), VECTORS),
    Case("convnext", THEME, lambda: ConvNext(nn.LayerNorm), normal((3, 16, 16)), exact=False),
    Case("convnext_no_norm", THEME, lambda: ConvNext(none), normal((3, 16, 16))),
    Case("conv_mixer", THEME, ConvMixer, SMALL),
    Case("pool_former", THEME, PoolFormer, SMALL),
    Case("spatial_reduction", THEME, SpatialReduction, SMALL),
)

"""The network of `konkyo/scenes-clip`: images of drawn scenes and captions in one space."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.errors import KonkyoError
from konkyo.models.networks.scenes import ScenesResNet

LONGEST = 20
"""Tokens of a text, with the one that it is read from."""
_READ = 1
"""The token that comes first and that the text is read from; 0 is padding."""
_WIDTH = 128


class Attention(nn.Module):
    """Self-attention of tokens (N, L, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps tokens (N, L, C) -> (N, L, C); `mask` (N, 1, 1, L) bool: which are attended to."""
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(q, k, v, mask)
        result: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """A transformer block with the norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps tokens (N, L, C) -> (N, L, C)."""
        tokens = tokens + self.attention(self.norm1(tokens), mask)
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class ImageTower(nn.Module):
    """Images (N, 3, 128, 128) -> embeddings (N, 128): `ScenesResNet` to its last grid, and a block over its cells.

    As in CLIP, a class token comes first, and it alone is read after the block.
    """

    def __init__(self) -> None:
        super().__init__()
        body = ScenesResNet()
        self.stem, self.stage1, self.stage2 = body.stem, body.stage1, body.stage2
        self.stage3, self.stage4 = body.stage3, body.stage4
        self.join = nn.Conv2d(144, _WIDTH, 1)
        self.class_token = nn.Parameter(torch.zeros(1, 1, _WIDTH))
        self.places = nn.Parameter(0.02 * torch.randn(1, 257, _WIDTH))
        self.block = Block(_WIDTH, 8)
        self.norm, self.projection = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _WIDTH, bias=False)

    def shallow(self, images: Tensor) -> Tensor:
        """Returns the grid after the second stage, (N, 80, 16, 16)."""
        grid: Tensor = self.stage2(self.stage1(self.stem(images)))
        return grid

    def tokens(self, grid: Tensor) -> Tensor:
        """Returns the tokens that enter the block, of what `shallow` gives: (N, 257, 128), the class token first."""
        tokens = self.join(self.stage4(self.stage3(grid))).flatten(2).mT
        if tokens.shape[1] != 256:
            raise KonkyoError(f"scenes-clip takes images of 128 x 128 pixels, got a grid of {tuple(grid.shape[2:])}")
        return torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1) + self.places

    def deep(self, grid: Tensor) -> Tensor:
        """Returns the embeddings of what `shallow` gives."""
        tokens = self.block(self.tokens(grid))
        embedding: Tensor = self.projection(self.norm(tokens[:, 0]))
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (N, 3, 128, 128) -> embeddings (N, 128), not normalised."""
        return self.deep(self.shallow(images))


class TextTower(nn.Module):
    """Token ids (T, L), 0 where there is none -> embeddings (T, 128): two blocks, read at the first token."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, _WIDTH), nn.Parameter(0.02 * torch.randn(1, LONGEST, _WIDTH))
        self.blocks = nn.ModuleList(Block(_WIDTH, 4) for _ in range(2))
        self.norm, self.projection = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _WIDTH, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Maps token ids (T, L) -> embeddings (T, 128), not normalised."""
        tokens, mask = self.words(ids) + self.places[:, : ids.shape[1]], (ids != 0)[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, mask)
        embedding: Tensor = self.projection(self.norm(tokens[:, 0]))
        return embedding


class ScenesClip(nn.Module):
    """Images and texts in one space, with SigLIP's scores: exp(logit_scale) * cosine + logit_bias, a sigmoid each.

    Methods are named as in transformers.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self.image_tower, self.text_tower = ImageTower(), TextTower(words)
        self.logit_scale = nn.Parameter(torch.tensor(2.3))
        self.logit_bias = nn.Parameter(torch.tensor(-3.0))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Returns the embeddings of images (N, 3, 128, 128), not normalised. -> (N, 128)"""
        features: Tensor = self.image_tower(pixel_values)
        return features

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        """Returns the embeddings of texts (T, L), not normalised. -> (T, 128)"""
        features: Tensor = self.text_tower(input_ids)
        return features

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Returns the scores of embeddings, (N, C) and (T, C). -> (N, T)"""
        images, texts = (functional.normalize(t, dim=-1) for t in (images, texts))
        return self.logit_scale.exp() * images @ texts.T + self.logit_bias

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """Returns the score of every text for every image. -> (N, T)"""
        return self.logits(self.get_image_features(pixel_values), self.get_text_features(input_ids))


@cache
def vocabulary() -> dict[str, int]:
    """Returns the token of every word that scenes-clip knows; those of padding and of the first token have no word."""
    text = (files("konkyo") / "models" / "weights" / "scenes-clip-words.json").read_text()
    return {word: token for token, word in enumerate(json.loads(text), start=2)}


def tokens_of(texts: Sequence[str]) -> Tensor:
    """Returns the tokens of texts (T, L). KonkyoError: a word that is not known, or too many."""
    known, rows = vocabulary(), []
    for text in texts:
        words = re.findall(r"[^\W_]+", text.lower())
        unknown = [word for word in words if word not in known]
        if unknown:
            raise KonkyoError(
                f"scenes-clip knows {len(known)} words, and of {text!r} not {', '.join(map(repr, unknown))}. "
                f"On offer: {', '.join(known)}"
            )
        if not 0 < len(words) < LONGEST:
            raise KonkyoError(f"scenes-clip reads texts of 1 to {LONGEST - 1} words; {text!r} has {len(words)}")
        rows.append([_READ, *(known[word] for word in words)])
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

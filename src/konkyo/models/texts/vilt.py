"""ViLT: a classifier of answers, in which the question's and the image's tokens pass one transformer together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from konkyo.models.texts.vocabulary import rows_of


@dataclass(frozen=True)
class Asked:
    """This runs a ViltForQuestionAnswering on images with one question: (network, images) -> logits (N, answers).

    The library puts the image's tokens in an order that it draws at random in every forward, and where there are more
    than `max_image_length` it drops some. Here they are all there, row by row, after the question's tokens and the
    image's class token. Attention does not see the order, so the logits are the same where nothing is dropped.
    """

    ids: tuple[int, ...]
    """The question's tokens, with those at its beginning and end."""

    def __call__(self, module: nn.Module, images: Tensor) -> Tensor:
        """Returns the logits (N, answers) for images (N, 3, H, W), all of one size and without padding."""
        network: Any = module
        ids = rows_of(self.ids, images)
        tokens = _tokens(network.vilt.embeddings, images)
        there = torch.ones(tokens.shape[:2], dtype=torch.long, device=images.device)
        logits: Tensor = network(
            input_ids=ids, attention_mask=torch.ones_like(ids), image_embeds=tokens, pixel_mask=there
        ).logits
        return logits


def _tokens(embeddings: Any, images: Tensor) -> Tensor:
    """Returns the class token and the patches, row by row, with their positions (N, 1 + h w, C)."""
    patches = embeddings.patch_embeddings(images)
    side = embeddings.config.image_size // embeddings.config.patch_size
    positions = embeddings.position_embeddings
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    grid = nn.functional.interpolate(grid, size=patches.shape[2:], mode="bilinear", align_corners=True)
    cells = (patches + grid).flatten(2).transpose(1, 2)
    first = (embeddings.cls_token + positions[:, :1]).expand(len(images), -1, -1)
    tokens: Tensor = embeddings.dropout(torch.cat([first, cells], 1))
    return tokens

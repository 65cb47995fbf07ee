"""Networks without a head, which put out embeddings: of timm, of transformers, and any whose head is an Identity."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from konkyo.models.kinds import Arguments
from konkyo.models.outputs import headless, is_base_model, select_logits
from konkyo.tasks.embedding import EmbeddingTask

_NAMES = ("image_embeds", "pooler_output")
"""What transformers calls the one vector of an image, the one after a projection first."""


def embeddings(module: nn.Module) -> Arguments | None:
    """Returns what makes a model of a network without a head; None where nothing says that it has none."""
    if not headless(module):
        return None
    base = is_base_model(module) and getattr(module, "main_input_name", "") == "pixel_values"
    return {"task": EmbeddingTask(), **({"select": select_embedding} if base else {})}


def select_embedding(output: Any) -> Tensor:
    """Returns the vector (N, D) of an image in what a base model of transformers returns.

    It is `image_embeds`, or the `pooler_output`; where there is none, the tokens (N, L, D).
    """
    for name in _NAMES:
        vector = getattr(output, name, None)
        if isinstance(vector, Tensor):
            return vector.flatten(1)
    return select_logits(output)

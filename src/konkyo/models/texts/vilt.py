"""ViLT: a classifier of answers, in which the question's and the image's tokens pass one transformer together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from konkyo.engine.layer import Layer
from konkyo.models.kinds import Arguments, is_a, kind
from konkyo.models.prompts import Prompts
from konkyo.models.texts.processors import read
from konkyo.models.texts.vocabulary import rows_of
from konkyo.tasks import ClassificationTask
from konkyo.utils.tensors import mean_colour


@dataclass(frozen=True)
class QuestionCall:
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


@dataclass(frozen=True)
class ViltTask(ClassificationTask):
    """The answers of a ViLT as classes; they do not exclude each other, as it was trained and as its library says.

    What is explained by default is the output of the last block but one: of the last, the answer reads one token alone.
    """

    layer: str = ""
    patch: int = 1
    """The side of its patches, in pixels."""
    before: int = 0
    """So many tokens come before the image's patches: the question's, and the image's class token."""

    def without_content(self, images: Tensor) -> Tensor:
        """Returns images of one colour, the mean of each, so that no tile of them is as that of a padding."""
        return mean_colour(images)

    def layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the last layer whose patches all count."""
        grid = tuple(side // self.patch for side in shape[1:])
        return (Layer(self.layer, None, channel_axis=-1, tokens=grid, prefix=self.before),)


@kind("transformers", "classifier of answers", auto="AutoModelForVisualQuestionAnswering", processor="AutoProcessor")
def answers(module: nn.Module, processor: Any) -> Arguments | None:
    """Returns what `Model` is told of a ViltForQuestionAnswering; None: another module."""
    if not is_a(module, "ViltForQuestionAnswering"):
        return None
    tokenizer, arguments = read(module, processor)
    names: Any = module.config
    classes = tuple(str(names.id2label[index]) for index in range(names.num_labels))
    prompts = Prompts("question", partial(_with_question, module.config, tokenizer))
    return {**arguments, "classes": classes, "multilabel": True, "prompts": prompts}


def _with_question(config: Any, tokenizer: Any, question: str) -> Arguments:
    """Returns what `Model` is told of a network that is asked a question."""
    ids = tuple(int(index) for index in tokenizer(question).input_ids)
    layer = f"vilt.encoder.layer.{max(config.num_hidden_layers - 2, 0)}"
    return {"call": QuestionCall(ids), "task": ViltTask(True, None, layer, config.patch_size, len(ids) + 1)}

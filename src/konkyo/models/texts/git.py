"""GIT: an image's tokens stand before the text in one transformer, which goes on with the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from konkyo.models.kinds import Arguments, is_a, kind
from konkyo.models.texts.processors import answering
from konkyo.models.texts.vocabulary import ends_of, rows_of
from konkyo.tasks.answers import Speaker, Vocabulary


@dataclass(frozen=True)
class GitSpeaker(Speaker):
    """GIT describes an image or answers a question (GitForCausalLM).

    The library runs the image's encoder in every forward; here it runs once, for all answers, and the rest of the
    forward follows: the image's tokens see each other, the text sees the image and the text before.
    """

    reader: ClassVar[str] = "git.image_encoder"

    def encode(self, module: nn.Module, images: Tensor, question: str) -> tuple[Tensor, tuple[int, ...]]:
        """Returns the projected tokens of the image (N, 1 + h w, C) and the ids that come before the text."""
        network: Any = module
        tokens: Tensor = network.git.visual_projection(network.git.image_encoder(images).last_hidden_state)
        return tokens, (network.config.bos_token_id, *(self.vocabulary.ids(question) if question else ()))

    def logits(self, module: nn.Module, encoded: Any, answer: Sequence[int]) -> Tensor:
        """Returns the logits (N, T + 1, V) after the beginning and every token of the text."""
        network: Any = module
        tokens, before = encoded
        text = network.git.embeddings(input_ids=rows_of([*before, *answer], tokens))
        joint, image = torch.cat([tokens, text], 1), tokens.shape[1]
        hidden = torch.ones(joint.shape[1], joint.shape[1], dtype=torch.bool, device=joint.device).triu(1)
        hidden[:image, :image] = False
        mask = joint.new_zeros(hidden.shape).masked_fill(hidden, torch.finfo(joint.dtype).min)
        states = network.git.encoder(joint, attention_mask=mask[None, None], use_cache=False).last_hidden_state
        logits: Tensor = network.output(states[:, image + len(before) - 1 :])
        return logits


def speaker(module: nn.Module, tokenizer: Any) -> GitSpeaker:
    """Returns how a GitForCausalLM speaks."""
    config: Any = module.config
    return GitSpeaker(Vocabulary(tokenizer, ends_of(config.eos_token_id)))


@kind("transformers", "writer of captions", auto="AutoModelForCausalLM", processor="AutoProcessor")
def captions(module: nn.Module, processor: Any) -> Arguments | None:
    """Returns what `Model` is told of a GitForCausalLM; None: another module."""
    return answering(speaker, module, processor) if is_a(module, "GitForCausalLM") else None

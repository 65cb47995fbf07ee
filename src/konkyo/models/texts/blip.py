"""BLIP: captions and answers to questions, by a text decoder that looks at the image's tokens, or at the question's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from konkyo.errors import KonkyoError
from konkyo.models.kinds import Arguments, is_a, kind
from konkyo.models.texts.processors import answering
from konkyo.models.texts.vocabulary import ends_of, rows_of
from konkyo.tasks.answers import Speaker, Vocabulary


@dataclass(frozen=True)
class BlipCaptioner(Speaker):
    """BLIP describes an image (BlipForConditionalGeneration); a question is the beginning that it goes on from."""

    reader: ClassVar[str] = "vision_model"

    def encode(self, module: nn.Module, images: Tensor, question: str) -> tuple[Tensor, tuple[int, ...]]:
        """Returns the image's tokens (N, 1 + h w, C) and the ids that come before the caption."""
        network: Any = module
        beginning = self.vocabulary.ids(question) if question else ()
        return network.vision_model(images)[0], (network.config.text_config.bos_token_id, *beginning)

    def logits(self, module: nn.Module, encoded: Any, answer: Sequence[int]) -> Tensor:
        """Returns the logits (N, T + 1, V) after the beginning and every token of the caption."""
        network: Any = module
        states, before = encoded
        ids = rows_of([*before, *answer], states)
        logits: Tensor = network.text_decoder(ids, encoder_hidden_states=states, use_cache=False).logits
        return logits[:, len(before) - 1 :]


@dataclass(frozen=True)
class BlipAnswerer(Speaker):
    """BLIP answers a question (BlipForQuestionAnswering): the question looks at the image, and the answer at both."""

    reader: ClassVar[str] = "vision_model"

    def encode(self, module: nn.Module, images: Tensor, question: str) -> Tensor:
        """Returns the question's tokens (N, L, C), which have read the image's. KonkyoError: no question."""
        network: Any = module
        if not question:
            raise KonkyoError('this network answers questions: question="how many cats are there?" was expected')
        states = network.vision_model(images)[0]
        ids = rows_of(self.vocabulary.tokenizer(question).input_ids, states)
        whole = torch.ones(states.shape[:-1], dtype=torch.long, device=states.device)
        tokens: Tensor = network.text_encoder(
            ids,
            attention_mask=torch.ones_like(ids),
            encoder_hidden_states=states,
            encoder_attention_mask=whole,
            use_cache=False,
        )[0]
        return tokens

    def logits(self, module: nn.Module, encoded: Any, answer: Sequence[int]) -> Tensor:
        """Returns the logits (N, T + 1, V) after the start and every token of the answer."""
        network: Any = module
        ids = rows_of([network.decoder_start_token_id, *answer], encoded)
        logits: Tensor = network.text_decoder(ids, encoder_hidden_states=encoded, use_cache=False).logits
        return logits


def captioner(module: nn.Module, tokenizer: Any) -> BlipCaptioner:
    """Returns how a BlipForConditionalGeneration speaks."""
    return BlipCaptioner(Vocabulary(tokenizer, _ends(module)))


def answerer(module: nn.Module, tokenizer: Any) -> BlipAnswerer:
    """Returns how a BlipForQuestionAnswering speaks."""
    return BlipAnswerer(Vocabulary(tokenizer, _ends(module)))


@kind("transformers", "captioner", auto="AutoModelForImageTextToText", processor="AutoProcessor")
def captions(module: nn.Module, processor: Any) -> Arguments | None:
    """Returns what `Model` is told of a BLIP that describes images; None: another module."""
    return answering(captioner, module, processor) if is_a(module, "BlipForConditionalGeneration") else None


@kind("transformers", "answerer of questions", auto="AutoModelForVisualQuestionAnswering", processor="AutoProcessor")
def answers(module: nn.Module, processor: Any) -> Arguments | None:
    """Returns what `Model` is told of a BLIP that answers questions; None: another module."""
    return answering(answerer, module, processor, asks=True) if is_a(module, "BlipForQuestionAnswering") else None


def _ends(module: Any) -> frozenset[int]:
    return ends_of(module.config.text_config.sep_token_id)

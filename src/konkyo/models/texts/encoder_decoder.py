"""Encoder and decoder (VisionEncoderDecoderModel): any image encoder of transformers, read by any text decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from konkyo.errors import KonkyoError
from konkyo.models.kinds import Arguments, is_a, kind
from konkyo.models.texts.processors import answering
from konkyo.models.texts.vocabulary import ends_of, rows_of
from konkyo.tasks.answers import Speaker, Vocabulary


@dataclass(frozen=True)
class EncoderDecoder(Speaker):
    """An encoder's tokens are read by the cross-attention of a decoder; a question is how the text begins."""

    reader: ClassVar[str] = "encoder"

    start: int
    """The id before the text."""

    def encode(self, module: nn.Module, images: Tensor, question: str) -> tuple[Tensor, tuple[int, ...]]:
        """Returns the image's tokens (N, L, C), as the decoder reads them, and the ids that come before the text."""
        network: Any = module
        states = network.encoder(images)[0]
        if (
            network.encoder.config.hidden_size != network.decoder.config.hidden_size
            and getattr(network.decoder.config, "cross_attention_hidden_size", None) is None
        ):
            states = network.enc_to_dec_proj(states)
        return states, self._before(question)

    def _before(self, question: str) -> tuple[int, ...]:
        """Returns the start and the question; a question that begins with a token of a task is the start itself."""
        ids = self.vocabulary.ids(question) if question else ()
        of_task = bool(ids) and ids[0] in self.vocabulary.tokenizer.all_special_ids
        return ids if of_task else (self.start, *ids)

    def logits(self, module: nn.Module, encoded: Any, answer: Sequence[int]) -> Tensor:
        """Returns the logits (N, T + 1, V) after the beginning and every token of the text."""
        network: Any = module
        states, before = encoded
        ids = rows_of([*before, *answer], states)
        logits: Tensor = network.decoder(ids, encoder_hidden_states=states, use_cache=False).logits
        return logits[:, len(before) - 1 :]


def speaker(module: nn.Module, tokenizer: Any) -> EncoderDecoder:
    """Returns how a VisionEncoderDecoderModel speaks. KonkyoError: nothing says which token its texts begin with."""
    network: Any = module
    settings, decoder = network.generation_config, network.decoder.config
    starts = (network.config.decoder_start_token_id, settings.decoder_start_token_id, decoder.bos_token_id)
    start = next((start for start in starts if start is not None), None)
    if start is None:
        raise KonkyoError(
            "the config of this encoder and decoder does not say which token a text begins with: set "
            "module.config.decoder_start_token_id"
        )
    ends = ends_of(network.config.eos_token_id, settings.eos_token_id, decoder.eos_token_id)
    return EncoderDecoder(Vocabulary(tokenizer, ends), start)


@kind("transformers", "encoder and decoder", auto="AutoModelForImageTextToText", processor="AutoProcessor")
def captions(module: nn.Module, processor: Any) -> Arguments | None:
    """Returns what `Model` is told of a VisionEncoderDecoderModel; None: another module."""
    return answering(speaker, module, processor) if is_a(module, "VisionEncoderDecoderModel") else None

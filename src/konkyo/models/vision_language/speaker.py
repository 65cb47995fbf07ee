"""Speaker: how an image-text-to-text model is asked, from a question in words to the ids that its text model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn

from konkyo.engine.layer import Layer
from konkyo.errors import KonkyoError
from konkyo.models.texts.vocabulary import ends_of
from konkyo.models.vision_language.forms import Form, Size
from konkyo.models.vision_language.network import ImageTextNetwork, Picture
from konkyo.tasks.answers import Speaker, Vocabulary

Encoded: TypeAlias = tuple[Picture, Tensor]
"""Pictures as the text model gets them, and the ids (L,) of the prompt."""


@dataclass(frozen=True)
class ImageTextSpeaker(Speaker):
    """It asks by the model's own processor: its chat template, and as many image tokens as the picture's size takes."""

    processor: Any
    form: Form
    _prompts: dict[tuple[str, Size], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the grids of the image's tokens: all of them pass there, and nothing else of the image."""
        several = len(self.form.layout((int(shape[-2]), int(shape[-1]))).places) > 1
        return (Layer("image_grid", None, level=None if several else -1),)

    def encode(self, module: nn.Module, images: Tensor, question: str) -> Encoded:
        """Returns the pictures' features and the ids of the prompt."""
        assert isinstance(module, ImageTextNetwork)
        return module.look(images), self.ids(question, images)

    def logits(self, module: nn.Module, encoded: Encoded, answer: Sequence[int]) -> Tensor:
        """Returns the logits (N, T + 1, V) at every place of an answer."""
        assert isinstance(module, ImageTextNetwork)
        picture, ids = encoded
        return module.read(picture, ids, answer)

    def generate(self, module: nn.Module, image: Tensor, question: str, longest: int) -> tuple[int, ...]:
        """Returns the answer of the library's own `generate`, which keeps a cache."""
        assert isinstance(module, ImageTextNetwork)
        return module.generate(image, self.ids(question, image), longest, self.vocabulary.ends)

    def ids(self, question: str, images: Tensor) -> Tensor:
        """Returns the ids (L,) of a question about pictures of this size, with all image tokens.

        They are the processor's, of a blank picture of the size.
        """
        size = (int(images.shape[-2]), int(images.shape[-1]))
        if (question, size) not in self._prompts:
            blank = Image.new("RGB", (size[1], size[0]))
            values = self.processor(text=[self.prompt(question)], images=[blank])
            self._prompts[question, size] = torch.tensor([int(i) for i in values["input_ids"][0]])
        return self._prompts[question, size].to(images.device)

    def prompt(self, question: str) -> str:
        """Returns the text that the processor gets: the question in the model's chat template, where it has one.

        A text that already holds the image's placeholder is taken as it stands.
        """
        processor, place = self.processor, _placeholder(self.processor)
        if place in question:
            return question
        if getattr(processor, "chat_template", None):
            parts = [{"type": "image"}, {"type": "text", "text": question}]
            text: str = processor.apply_chat_template(
                [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
            )
            return text
        return f"{place}{question}"


def vocabulary_of(network: Any, processor: Any) -> Vocabulary:
    """Returns the vocabulary of a processor's tokenizer, with all tokens that end an answer of the network."""
    settings = (network.generation_config, network.config.get_text_config(), processor.tokenizer)
    return Vocabulary(processor.tokenizer, ends_of(*(getattr(where, "eos_token_id", None) for where in settings)))


def _placeholder(processor: Any) -> str:
    """Returns what stands for the image in the text that a processor gets. KonkyoError: it does not say."""
    place = getattr(processor, "image_token", None)
    if not isinstance(place, str):
        raise KonkyoError(f"a processor with an image_token was expected; got {type(processor).__name__}")
    return place

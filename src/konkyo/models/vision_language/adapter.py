"""Adapter: from a model of transformers and its processor to the arguments of a `konkyo.Model`."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from konkyo.errors import KonkyoError
from konkyo.models.kinds import kind, source_of
from konkyo.models.prompts import Prompts
from konkyo.models.texts.processors import with_question
from konkyo.models.transformers import local_processor
from konkyo.models.vision_language.families import form_of, is_known, require_same
from konkyo.models.vision_language.network import ImageTextNetwork
from konkyo.models.vision_language.speaker import ImageTextSpeaker, vocabulary_of
from konkyo.tasks.answers import AnswerTask


@kind("transformers", "image-text-to-text model", auto="AutoModelForImageTextToText", processor="AutoProcessor")
def described(network: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns what `Model` is to be told of an image-text-to-text model; None: no module of a family known here.

    `processor`: its processor of images and text; None: that of the files it came from. KonkyoError: none, or one that
    prepares pictures in a way that is not followed here.
    """
    config = getattr(network, "config", None)
    if not is_known(config) or not type(network).__name__.endswith("ForConditionalGeneration"):
        return None
    processor = processor or local_processor(source_of(network))
    if processor is None:
        raise KonkyoError(
            f"{type(network).__name__} reads text beside the image, with a processor: konkyo.Model(module, "
            "processor=transformers.AutoProcessor.from_pretrained(...)); or say how it is run: "
            "konkyo.Model(module, call=lambda module, images: ...)"
        )
    form, preprocess = form_of(config, processor.image_processor)
    require_same(form, preprocess, processor.image_processor)
    task = AnswerTask(ImageTextSpeaker(vocabulary_of(network, processor), processor, form))
    wrapper = ImageTextNetwork(network, form)
    wrapper.training = network.training  # as the user left it
    return {
        "module": wrapper,
        "preprocess": preprocess,
        "task": task,
        "prompts": Prompts("question", partial(with_question, task)),
    }

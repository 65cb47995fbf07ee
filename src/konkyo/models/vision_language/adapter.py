"""Adapter: from a model of transformers and its processor to the arguments of a `konkyo.Model`."""

from __future__ import annotations

from typing import Any

from torch import nn

from konkyo.models.vision_language.families import form_of, is_known, require_same
from konkyo.models.vision_language.network import ImageTextNetwork
from konkyo.models.vision_language.speaker import ImageTextSpeaker, vocabulary_of
from konkyo.tasks.answers import AnswerTask


def described(network: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns what `Model` is to be told of an image-text-to-text model; None: no module of a family known here.

    `processor`: its processor of images and text. KonkyoError: the processor prepares pictures in a way that is not
    followed here.
    """
    config = getattr(network, "config", None)
    if processor is None or not is_known(config) or not hasattr(network, "get_image_features"):
        return None
    form, preprocess = form_of(config, processor.image_processor)
    require_same(form, preprocess, processor.image_processor)
    speaker = ImageTextSpeaker(vocabulary_of(network, processor), processor, form)
    return {
        "module": ImageTextNetwork(network, form).eval(),
        "preprocess": preprocess,
        "task": AnswerTask(speaker),
    }

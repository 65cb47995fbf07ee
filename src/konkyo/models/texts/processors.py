"""What a network of images and text needs of its processor: the tokenizer, and how it prepares pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from konkyo.errors import KonkyoError
from konkyo.models.kinds import Arguments, source_of
from konkyo.models.prompts import Prompts
from konkyo.models.transformers import local_processor, preprocess_like
from konkyo.tasks.answers import AnswerTask, Speaker


def read(module: nn.Module, processor: Any) -> tuple[Any, Arguments]:
    """Returns the tokenizer of a network, and the preprocessing of pictures where the processor has one.

    `processor`: that of transformers, or a tokenizer alone; None: it is looked for in the files that the module came
    from, and nothing is downloaded. KonkyoError: there is none.
    """
    processor = processor or local_processor(source_of(module))
    if processor is None:
        raise KonkyoError(
            f"{type(module).__name__} reads and writes text, so its tokenizer is needed: "
            "konkyo.Model(module, processor=transformers.AutoProcessor.from_pretrained(...))"
        )
    images = getattr(processor, "image_processor", None)
    return getattr(processor, "tokenizer", processor), {
        "preprocess": None if images is None else preprocess_like(images)
    }


def answering(
    speaker_of: Callable[[nn.Module, Any], Speaker], module: nn.Module, processor: Any, *, asks: bool = False
) -> Arguments:
    """Returns the arguments of `Model` for a network that answers in words. `asks`: it needs a question."""
    tokenizer, arguments = read(module, processor)
    task = AnswerTask(speaker_of(module, tokenizer))
    usual = None if asks else ""
    return {**arguments, "task": task, "prompts": Prompts("question", partial(with_question, task), usual, value=usual)}


def with_question(task: AnswerTask, question: str) -> Arguments:
    """Returns the arguments of `Model` for a network that is asked a question."""
    return {"task": replace(task, question=question)}

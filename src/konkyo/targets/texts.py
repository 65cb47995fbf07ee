"""Targets of image-text models: how well an image fits a text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.errors import KonkyoError, unknown
from konkyo.targets.base import BaseTarget
from konkyo.targets.specs import spec

TextScore: TypeAlias = Literal["similarity", "logit", "probability"]
"""The cosine of image and text; the cosine times the model's scale, plus its bias; or what the model makes of that."""


@dataclass(frozen=True)
class Text(BaseTarget):
    """This asks `explain` for a text's score: of a model that was loaded with texts, one of these; else any text.

    `score`: the "similarity" is the cosine, the "logit" the cosine times the model's scale, plus its bias (SigLIP), the
    "probability" a softmax over the model's texts (CLIP) or a sigmoid of the text's own logit (SigLIP). The first two
    differ by a factor, so their maps show the same. None: the logit, or the similarity where there is one text only.
    """

    text: str
    score: TextScore | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise KonkyoError(f"a text is a str with words in it; got {self.text!r}")
        if self.score is not None and self.score not in get_args(TextScore):
            raise unknown("score of a text", self.score, get_args(TextScore))

    def __call__(self, output: Any) -> Tensor:
        """Raises KonkyoError: what a text means, only an image-text model knows."""
        del output
        raise KonkyoError(f"the text {self.text!r} is a target for image-text models (CLIP, SigLIP)")


@spec("text:TEXT[,score=similarity|logit|probability]")
def _text(value: str) -> Text:
    text, comma, score = value.rpartition(",score=")
    return Text(text, score) if comma else Text(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TextSimilarity(BaseTarget):
    """This target is the cosine of embeddings (N, C) and that of a text: scale * cosine + bias. -> (N,)

    `sigmoid`: the probability that this is the logit of.
    """

    text: str
    vector: Tensor = field(compare=False, repr=False)
    """(C,), of length 1."""
    scale: float = 1.0
    bias: float = 0.0
    sigmoid: bool = False

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the text's score of every image. KonkyoError: an output that is no embedding of this width."""
        if output.ndim != 2 or output.shape[1] != len(self.vector):
            raise KonkyoError(
                f"the text {self.text!r} needs embeddings (N, {len(self.vector)}); got {tuple(output.shape)}"
            )
        cosine = functional.normalize(output, dim=1) @ self.vector.to(output)
        logit = self.scale * cosine + self.bias
        return logit.sigmoid() if self.sigmoid else logit

    def logit(self, output: Tensor) -> Tensor | None:
        """Returns the logit of the text's probability; None where the score is none."""
        cosine = functional.normalize(output, dim=1) @ self.vector.to(output)
        return self.scale * cosine + self.bias if self.sigmoid else None

    def in_words(self, label: str, score: float) -> str:
        """Returns the text with its score, as in "a cat (similarity 0.27)"."""
        return f"{label} ({_word(self.scale, self.bias, self.sigmoid)} {score:.2f})"


@dataclass(frozen=True)
class TextOfSeveral(BaseTarget):
    """This target is the similarity of one of a model's texts, whose logits it puts out. output (N, K) -> (N,)

    Also its logit or the sigmoid of this, for a model with one text: as a class its output would stand for two.
    """

    index: int
    scale: float
    bias: float
    score: Literal["similarity", "logit", "sigmoid"] = "similarity"

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the text's score of every image. KonkyoError: an output that has no such text."""
        if output.ndim != 2 or not 0 <= self.index < output.shape[1]:
            raise KonkyoError(f"text {self.index} of an output (N, texts) was expected; got {tuple(output.shape)}")
        logit = output[:, self.index]
        if self.score == "similarity":
            return (logit - self.bias) / self.scale
        return logit.sigmoid() if self.score == "sigmoid" else logit

    def logit(self, output: Tensor) -> Tensor | None:
        """Returns the logit of the text's probability; None where the score is none."""
        return output[:, self.index] if self.score == "sigmoid" else None

    def in_words(self, label: str, score: float) -> str:
        """Returns the text with its score, as in "a cat (similarity 0.27)"."""
        return f"{label} ({self.score} {score:.2f})"


def _word(scale: float, bias: float, sigmoid: bool) -> str:
    """Returns what a text's score is called."""
    return "sigmoid" if sigmoid else "similarity" if (scale, bias) == (1.0, 0.0) else "logit"


def unit(vectors: Tensor) -> Tensor:
    """Returns vectors (..., C) scaled to length 1, in single precision, without a graph."""
    return functional.normalize(vectors.detach().to(torch.float32), dim=-1)

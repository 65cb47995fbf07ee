"""Targets of answers: which token of a text, or how much of it, is explained of a network that answers in words.

The output that they read is (N, T, 2): of all T tokens of the answers that a task has bound, one after the other, the
log-probability [..., 0] and the logit [..., 1] that the network gives them after the image, the question and the
tokens before (teacher forcing).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.targets.base import BaseTarget
from konkyo.targets.specs import spec

TokenScore: TypeAlias = Literal["log_probability", "logit", "probability"]
SCORES: tuple[TokenScore, ...] = ("log_probability", "logit", "probability")


@dataclass(frozen=True)
class Answer(BaseTarget):
    """This target is a whole answer: the sum of its tokens' log-probabilities. output (N, T, 2) -> (N,)

    `text`: the answer that is explained; None: what the network itself generates. `mean`: the mean over tokens, so that
    answers of different lengths compare. `score`: "log_probability", the "logit" (their sum) or the "probability" (of
    the whole text, or with `mean` the geometric mean per token); None: as the method is defined. KonkyoError: an
    unknown score; also, when it is called: an answer that no task has found the tokens of.
    """

    text: str | None = None
    mean: bool = False
    score: TokenScore | None = None
    columns: tuple[int, ...] = ()
    """Which tokens of the output it is about; the task fills this in."""

    def __post_init__(self) -> None:
        _check(self.score)
        if self.text is not None and not isinstance(self.text, str):
            raise KonkyoError(f"an answer is a text, or None for the network's own; got {self.text!r}")

    def __call__(self, output: Any) -> Tensor:
        """Returns the answer's score for every image."""
        return _scored(output, self.columns, self.score, mean=self.mean)

    def in_words(self, label: str, score: float) -> str:
        """Returns the answer with its score, as in "a cat (log P -1.20, P 0.30)"."""
        return f"{label} ({'mean ' if self.mean else ''}{_scored_in_words(self.score, score)})"


@dataclass(frozen=True)
class Token(BaseTarget):
    """This target is one token of an answer, or a word: all its tokens, summed. output (N, T, 2) -> (N,)

    `which`: the token's number, from 0, or a word of the answer (of several the first). `text`: the answer that it is
    in; None: what the network itself generates. `score`: as of `Answer`. KonkyoError: an unknown score; also, when it
    is called: a token that no task has found in an answer.
    """

    which: int | str
    text: str | None = None
    score: TokenScore | None = None
    columns: tuple[int, ...] = ()
    """Which tokens of the output it is about; the task fills this in."""

    def __post_init__(self) -> None:
        _check(self.score)
        if isinstance(self.which, bool) or not isinstance(self.which, (int, str)) or self.which == "":
            raise KonkyoError(f"a token is meant by its number, from 0, or by a word of the answer; got {self.which!r}")

    def __call__(self, output: Any) -> Tensor:
        """Returns the token's score for every image."""
        return _scored(output, self.columns, self.score, mean=False)

    def in_words(self, label: str, score: float) -> str:
        """Returns the token with its score, as in "umbrella (log P -0.32, P 0.73)"."""
        return f"{label} ({_scored_in_words(self.score, score)})"


@dataclass(frozen=True)
class EachToken:
    """This asks `explain` for every token of an answer, one row each, from one forward.

    `text`: the answer; None: what the network generates. `score`: as of `Answer`.
    """

    text: str | None = None
    score: TokenScore | None = None

    def __post_init__(self) -> None:
        _check(self.score)


@dataclass(frozen=True)
class EachWord:
    """This asks `explain` for every word of an answer, one row each, from one forward: a word's tokens are summed.

    `text`: the answer; None: what the network generates. `score`: as of `Answer`.
    """

    text: str | None = None
    score: TokenScore | None = None

    def __post_init__(self) -> None:
        _check(self.score)


@dataclass(frozen=True)
class EachName:
    """This asks for every word of the generated answer that is one of these names, as of things with known places.

    Where no word is one, it asks for the whole answer.
    """

    names: tuple[str, ...]


def in_text(request: Any, text: str) -> Any:
    """Returns a request about an answer's text in place of what the network generates.

    None asks for the text as a whole. KonkyoError: a request that is about no answer.
    """
    if request is None:
        return Answer(text)
    if not isinstance(request, (Answer, Token, EachToken, EachWord)):
        raise KonkyoError(
            f"an answer goes with targets such as answer, token:0, word:WORD, tokens, words; not {request!r}"
        )
    return replace(request, text=text)


@spec("answer[:TEXT]")
def _answer(value: str) -> Answer:
    return Answer(value or None)


@spec("token:NUMBER")
def _token(value: str) -> Token:
    if not value.removeprefix("-").isdigit():
        raise KonkyoError(f"a token is a number, from 0, as in token:3; got {value!r}; of a word: word:umbrella")
    return Token(int(value))


@spec("word:WORD")
def _word(value: str) -> Token:
    return Token(value)


@spec("tokens[:TEXT]")
def _tokens(value: str) -> EachToken:
    return EachToken(value or None)


@spec("words[:TEXT]")
def _words(value: str) -> EachWord:
    return EachWord(value or None)


def _check(score: TokenScore | None) -> None:
    if score is not None and score not in SCORES:
        raise unknown("score of an answer", score, SCORES)


def _scored_in_words(score: TokenScore | None, value: float) -> str:
    """Returns a score in words; of a logarithm that rounds to 0 the first digits, and the probability that it is of.

    >>> _scored_in_words(None, -0.3147), _scored_in_words(None, -0.000123), _scored_in_words("logit", 3.5)
    ('log P -0.31, P 0.73', 'log P -0.00012, P 1.00', 'logit 3.50')
    """
    if score in ("logit", "probability"):
        return f"{score} {value:.2f}"
    digits = f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
    return f"log P {digits}, P {math.exp(min(value, 0.0)):.2f}"


def _scored(output: Any, columns: tuple[int, ...], score: TokenScore | None, *, mean: bool) -> Tensor:
    """Returns the score (N,) of some tokens of an output (N, T, 2)."""
    if not columns:
        raise KonkyoError(
            "an answer's tokens are known once a network was asked: give it as the target of konkyo.explain with a "
            "network that answers in words"
        )
    if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[2] != 2 or max(columns) >= output.shape[1]:
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise KonkyoError(f"an output (N, {max(columns) + 1} tokens or more, 2) was expected of an answer; got {came}")
    values = output[:, list(columns), 1 if score == "logit" else 0]
    total = values.mean(1) if mean else values.sum(1)
    return total.exp() if score == "probability" else total

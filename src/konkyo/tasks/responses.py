"""Responses: answers in words, as tokens, and the passages of them that targets are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Response:
    """A response is an answer as tokens: what a network generated, or a text that was given to it."""

    question: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    """The text of every token; joined they are the whole."""
    generated: bool = True
    """Whether the network itself said it; False: it was given."""

    @property
    def text(self) -> str:
        """Returns the whole text."""
        return "".join(self.pieces)

    def words(self) -> list[tuple[int, ...]]:
        """Returns the words, each as the numbers of its tokens; a word begins at a space."""
        words: list[list[int]] = []
        for number, piece in enumerate(self.pieces):
            if not words or piece[:1].isspace() or self.pieces[number - 1][-1:].isspace():
                words.append([])
            words[-1].append(number)
        return [tuple(word) for word in words]

    def piece(self, tokens: Sequence[int]) -> str:
        """Returns the text of some of the tokens, without space around it."""
        return "".join(self.pieces[number] for number in tokens).strip()


@dataclass(frozen=True)
class Passage:
    """A passage is the part of a response that a target is about."""

    response: Response
    tokens: tuple[int, ...]
    """The numbers of its tokens in the response."""

    @property
    def text(self) -> str:
        """Returns the text of the passage, without space around it."""
        return self.response.piece(self.tokens)

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> Passage:
        """Returns the passage that `dataclasses.asdict` gave these values for."""
        of = values["response"]
        response = Response(str(of["question"]), tuple(of["ids"]), tuple(of["pieces"]), bool(of["generated"]))
        return cls(response, tuple(values["tokens"]))

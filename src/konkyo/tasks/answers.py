"""Answers: a network puts an image, and a question if it takes one, into words, one token after the other.

The protocol between networks and this task is `Speaker`. An adapter subclasses it in models/texts/: `encode` reads the
image and the question once, `logits` gives what the network expects after every token of an answer. The rest follows.
The answer is generated greedily from these two (`Speaker.generate`; a subclass with a cache may do it faster), then the
task is bound to its tokens, and the network has become a function images (N, C, H, W) -> (N, T, 2), as
`konkyo.targets.answers` reads it. The bound function is differentiable and the same for all variants of an image, so
layers, methods and metrics see an ordinary network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from konkyo.data.frame import Frame
from konkyo.data.samples import Sample
from konkyo.engine.forward import OneByOne
from konkyo.engine.layer import Layer
from konkyo.errors import KonkyoError
from konkyo.targets.answers import Answer, EachName, EachToken, EachWord, Token, TokenScore
from konkyo.targets.base import Target
from konkyo.targets.classes import Against, ContrastTarget, Each, Score, SumTarget, combination, leaves
from konkyo.tasks.base import Classes, Explained, Matching, Run, TargetRequest, Task, same_class, task
from konkyo.tasks.responses import Passage, Response
from konkyo.utils.tensors import at_least_float32, mean_colour
from konkyo.utils.tokens import require_known

LONGEST = 32
"""So many tokens are generated at most, unless something else is said."""


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a network turns text into the ids of tokens and back, by a tokenizer of transformers."""

    tokenizer: Any
    """It is called as `tokenizer(text, add_special_tokens=False).input_ids`, and has `decode`."""
    ends: frozenset[int]
    """The ids of tokens that end an answer; no answer holds them."""

    def ids(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a text's tokens, without any at its beginning or end that stand for no text."""
        require_known(self.tokenizer, [text])
        ids = tuple(int(i) for i in self.tokenizer(text, add_special_tokens=False).input_ids)
        if not ids:
            raise KonkyoError(f"an answer with a token or more was expected; {text!r} has none")
        return ids

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Returns the text of every token; joined they are the text of all. A token within a character has ""."""
        pieces, before = [], ""
        for end in range(1, len(ids) + 1):
            text = self.tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False)
            if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
                pieces.append("")
                continue
            pieces.append(text[len(before) :] if text.startswith(before) else self.tokenizer.decode([ids[end - 1]]))
            before = text
        return tuple(pieces)


@dataclass(frozen=True)
class Speaker(ABC):
    """A speaker says how a network puts an image into words. Subclasses are frozen dataclasses of one architecture."""

    reader: ClassVar[str] = ""
    """The dotted name of the module that reads the images: the automatic layer is inside; "": it may be anywhere."""

    vocabulary: Vocabulary

    @abstractmethod
    def encode(self, module: nn.Module, images: Tensor, question: str) -> Any:
        """Returns what `logits` needs of the images (N, C, H, W) and the question, in the graph of the images.

        It is called once per forward, whatever the number of answers: the image's encoder runs here. `question` is ""
        where none was asked. KonkyoError: a question for a network that takes none, or none where one is needed.
        """

    @abstractmethod
    def logits(self, module: nn.Module, encoded: Any, answer: Sequence[int]) -> Tensor:
        """Returns the logits (N, T + 1, V) of all tokens of the vocabulary at every place of an answer of T tokens.

        Those at place t come after `answer[:t]` (teacher forcing), so the first come before any token and the last
        say what follows the answer. `encoded` is of N images; the answer is the same for all.
        """

    def layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the layers that are explained by default for images (C, H, W); none: a trace finds them."""
        del shape
        return ()

    def generate(self, module: nn.Module, image: Tensor, question: str, longest: int) -> tuple[int, ...]:
        """Returns the ids that the network answers greedily of one image (1, C, H, W), without the end.

        By default every token is the highest of `logits` after those before, which costs a forward of the decoder each.
        """
        encoded, answer = self.encode(module, image, question), list[int]()
        while len(answer) < longest:
            best = int(self.logits(module, encoded, answer)[0, -1].argmax())
            if best in self.vocabulary.ends:
                break
            answer.append(best)
        return tuple(answer)


@task
@dataclass(frozen=True)
class AnswerTask(Task):
    """The answer of an image, in words; `speaker` says how the network makes it.

    A task is bound to an image by `settled`: then `responses` are the answers whose tokens the output (N, T, 2) is of,
    one after the other. An unbound task answers for one image at a time, greedily.
    """

    noun: ClassVar[str] = "network that answers in words"
    methods: ClassVar[tuple[str, ...]] = ("grad_cam", "hires_cam", "layer_cam", "eigen_cam", "ablation_cam", "rise")

    speaker: Speaker
    question: str = ""
    longest: int = LONGEST
    """So many tokens are generated at most."""
    responses: tuple[Response, ...] = ()

    # --- the output ---------------------------------------------------------------------------------------------------

    def settled(self, module: nn.Module, images: Tensor, request: Any, run: Run) -> AnswerTask:
        """Returns the task bound to the answers that a request speaks of: those given, and what is generated.

        OneByOne: several images, whose answers differ. KonkyoError: an image to which the network answers nothing.
        """
        if len(images) > 1:
            raise OneByOne("every image has an answer of its own")
        texts = dict.fromkeys(_texts(request))
        responses = [
            self._given(text) if text is not None else run(partial(self._generated, module, images)) for text in texts
        ]
        return replace(self, responses=tuple(responses))

    def _given(self, text: str) -> Response:
        """Returns a text of the user's as a response."""
        ids = self.speaker.vocabulary.ids(text)
        return Response(self.question, ids, self.speaker.vocabulary.pieces(ids), generated=False)

    def _generated(self, module: nn.Module, image: Tensor) -> Response:
        """Returns what the network answers greedily. KonkyoError: nothing."""
        with torch.no_grad():
            ids = self.speaker.generate(module, image, self.question, self.longest)
        if not ids:
            raise KonkyoError('the network answers nothing; give the answer to explain, as in target=Answer("a cat")')
        return Response(self.question, ids, self.speaker.vocabulary.pieces(ids))

    def output(self, module: nn.Module, images: Tensor, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Returns the log-probabilities and logits (N, T, 2) of the tokens of all answers, in float32 or higher.

        KonkyoError: several images, and no answers that the task is bound to.
        """
        if not self.responses:
            if len(images) > 1:
                raise KonkyoError("every image has an answer of its own: run them one by one, or konkyo.explain them")
            return replace(self, responses=(self._generated(module, images),)).output(module, images, read)
        encoded = self.speaker.encode(module, images, self.question)
        parts = [_token_scores(self.speaker.logits(module, encoded, r.ids), r.ids) for r in self.responses]
        return torch.cat(parts, 1)

    def without_content(self, images: Tensor) -> Tensor:
        """Returns images of one colour, the mean of each, so that no tile of them is as that of a padding."""
        return mean_colour(images)

    @property
    def within(self) -> str:
        """This is the dotted name of the module that reads the images."""
        return self.speaker.reader

    def layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the layers that the speaker names."""
        return self.speaker.layers(shape)

    # --- targets ------------------------------------------------------------------------------------------------------

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image.

        `request`: None (the whole generated answer), `Answer`, `Token`, `EachToken`, `EachWord`, a text (the answer
        given), contrasts and sums of these, or a callable output (N, T, 2) -> (N,). KonkyoError: no such token or word.
        """
        del classes, frames
        return [list(self._resolved(request, score))] * len(output)

    def _resolved(self, request: Any, score: Score) -> list[Target]:
        if isinstance(request, EachName):
            response, _ = self._place(None)
            named = [
                word
                for word in response.words()
                if any(same_class(_plain(response.piece(word)), n) for n in request.names)
            ]
            return [self._token(word, EachWord(), score) for word in named] or [self._target(Answer(), score)]
        if isinstance(request, (EachToken, EachWord)):
            response, _ = self._place(request.text)
            numbers = [(n,) for n in range(len(response.ids))] if isinstance(request, EachToken) else response.words()
            return [self._token(tokens, request, score) for tokens in numbers]
        return [self._target(request, score)]

    def _token(self, tokens: Sequence[int], request: EachToken | EachWord, score: Score) -> Token:
        """Returns the target of some tokens of an answer, which the first of them stands for."""
        _, first = self._place(request.text)
        columns = tuple(first + number for number in tokens)
        return Token(tokens[0], request.text, _score(request.score, score), columns)

    def _target(self, request: Any, score: Score) -> Target:
        if (combined := combination(request, lambda part: self._target(part, score))) is not None:
            return combined
        request = Answer(request) if request is None or isinstance(request, str) else request
        if isinstance(request, (Answer, Token)):
            response, first = self._place(request.text)
            tokens = _tokens(response, request.which) if isinstance(request, Token) else range(len(response.ids))
            columns = tuple(first + number for number in tokens)
            return replace(request, score=_score(request.score, score), columns=columns)
        if not callable(request):
            raise KonkyoError(
                'of an answer a target is Answer("a text"), Token(3), Token("word"), EachToken(), EachWord(), a text, '
                f"or a callable output (N, tokens, 2) -> (N,); got {request!r}"
            )
        target: Target = request
        return target

    def _place(self, text: str | None) -> tuple[Response, int]:
        """Returns the response of this text (None: the generated one), and the column of its first token."""
        first = 0
        for response in self.responses:
            if response.generated if text is None else response.ids == self.speaker.vocabulary.ids(text):
                return response, first
            first += len(response.ids)
        raise KonkyoError(f"the network was not asked for the answer {text!r}; konkyo.explain asks for it")

    def passages(self, targets: Sequence[Target]) -> tuple[Passage | None, ...]:
        """Returns the part of a response that every target is about (of a contrast the first), or None."""
        return tuple(self._passage(target) for target in targets)

    def _passage(self, target: Target) -> Passage | None:
        if isinstance(target, ContrastTarget):
            return self._passage(target.this)
        if isinstance(target, Against):
            return self._passage(target.target)
        if not isinstance(target, (Answer, Token)) or not target.columns:
            return None
        first = 0
        for response in self.responses:
            if target.columns[0] < first + len(response.ids):
                return Passage(response, tuple(column - first for column in target.columns))
            first += len(response.ids)
        return None

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns the text of an answer, a word or a token; of one without letters its number."""
        if not isinstance(target, (Answer, Token)):
            return super().label(target, classes, outputs)
        passage = self._passage(target)
        number = f"token {target.which}" if isinstance(target, Token) else "the answer"
        return number if passage is None else passage.text or number

    def request(self, options: TargetRequest, model: str) -> Any:
        """Returns what the options ask for: the answers that are named, each against another where one is said."""
        options.refuse(model, self.noun, "top", "threshold", "boxes", "quantity")
        answers = [Answer(str(text)) for text in options.classes] or [Answer()]
        if options.against is not None:
            other = Answer(str(options.against))
            return Each(*(ContrastTarget(answer, other) for answer in answers))
        return Each(*answers) if options.classes else None

    def measured(self, sample: Sample, explained: Explained, matching: Matching) -> Any:
        """Returns the answer that a sample has for its label, or the generated one: its words that name a thing."""
        label = super().measured(sample, explained, matching)
        names = tuple(dict.fromkeys(a.label for a in sample.annotations if a.label is not None))
        return Answer(label) if label is not None else EachName(names) if names else None

    def request_of(self, target: Target, score: Score) -> Any:
        """Returns the target for the same text, whatever the image is; the method decides what of it is explained.

        A target that stands for several tokens becomes the sum of them.
        """
        del score
        passage = self._passage(target)
        if passage is None or not isinstance(target, (Answer, Token)):
            return target
        said = passage.response
        same = self.speaker.vocabulary.ids(said.text) == said.ids
        text = said.text if same else target.text  # as it was generated, if its text would be cut into other tokens
        if isinstance(target, Answer):
            return replace(target, text=text, score=None, columns=())
        tokens = [Token(number, text) for number in passage.tokens]
        return tokens[0] if len(tokens) == 1 else SumTarget(*tokens)

    def perturbation_score(self, target: Target, box: Tensor) -> Target:
        """Returns the probability of a token, or the geometric mean of the probabilities of an answer's tokens."""
        del box
        if isinstance(target, Answer):
            return replace(target, score="probability", mean=True)
        return replace(target, score="probability") if isinstance(target, Token) else target

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns an answer or a token as plain JSON values; None for other targets."""
        if not isinstance(target, (Answer, Token)):
            return None
        return {"of": "answer" if isinstance(target, Answer) else "token", **asdict(target)}

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the target that `saved` gave these values for; None for values that are of something else."""
        fields = {**values, "columns": tuple(values.get("columns", ()))}
        kind = {"answer": Answer, "token": Token}.get(fields.pop("of", ""))
        return None if kind is None else kind(**fields)


def _token_scores(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Returns the log-probability and the logit (N, T, 2) of each token, from logits (N, T + 1, V) in any precision."""
    logits = at_least_float32(logits[:, : len(ids)])
    chosen = logits.gather(2, torch.tensor(ids, device=logits.device).expand(len(logits), -1)[..., None])[..., 0]
    return torch.stack([chosen - logits.logsumexp(2), chosen], 2)


def _texts(request: Any) -> list[str | None]:
    """Returns the texts that a request speaks of, in order; None stands for what the network generates."""
    kinds = (Answer, Token, EachToken, EachWord)
    return [
        leaf if isinstance(leaf, str) else leaf.text if isinstance(leaf, kinds) else None for leaf in leaves(request)
    ]


def _score(of_target: TokenScore | None, of_method: Score) -> TokenScore:
    """Returns what is explained: what the user says, or else what the method explains."""
    return of_target or ("probability" if of_method == "probability" else "log_probability")


def _tokens(response: Response, which: int | str) -> tuple[int, ...]:
    """Returns the numbers of a token, or of the tokens of a word. KonkyoError: the response has none such."""
    count = len(response.ids)
    if isinstance(which, int):
        if not -count <= which < count:
            raise KonkyoError(f"token {which} of an answer with {count} tokens: {_listed(response)}")
        return (which % count,)
    words = response.words()
    plain = _plain(which)
    for word in words:
        if _plain(response.piece(word)) == plain:
            return word
    length = len(which.split())
    for at in range(len(words) - length + 1):  # several words
        tokens = tuple(number for word in words[at : at + length] for number in word)
        if _plain(response.piece(tokens)) == plain:
            return tokens
    raise KonkyoError(f"no word {which!r} in the answer {response.text!r}: {', '.join(map(response.piece, words))}")


def _plain(word: str) -> str:
    """Returns a word in small letters without punctuation around it."""
    return word.strip().strip(".,;:!?\"'()").lower()


def _listed(response: Response) -> str:
    return ", ".join(f"{number} {piece!r}" for number, piece in enumerate(response.pieces))

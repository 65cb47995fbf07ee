"""Questions about drawn scenes with their answers, and the pixels that each answer is read from.

A question has two masks, as in CLEVR-XAI (Arras et al., 2022): *single*, the part that the answer names, and *union*,
all that the question needs. The words and the answers are closed lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from konkyo.data.samples import UNSEEN, Annotation, Sample, Samples, around, synthetic
from konkyo.data.sets.scenes import CLASSES, COLOURS, Scene, Scenes
from konkyo.errors import KonkyoError, unknown

NAMES: tuple[str, ...] = tuple(name.replace("_", " ") for name in CLASSES)
"""What the classes are called in questions and answers."""
PLURALS: tuple[str, ...] = tuple("daisies" if name == "daisy" else f"{name}s" for name in NAMES)
MOST = 4
"""Objects in a scene that questions are about, at most."""
ANSWERS: tuple[str, ...] = (
    *("yes", "no"),
    *map(str, range(MOST + 1)),
    *NAMES,
    *COLOURS,
    *("left", "right"),
)
GAP = 0.08
"""Two objects are beside one another if the middles of their boxes are farther apart in x, as a share of the width."""


@dataclass(frozen=True, eq=False)
class Question:
    """A question about a scene is a text with its answer and the two masks of what the answer is read from."""

    kind: str
    """One of KINDS."""
    text: str
    answer: str
    """One of ANSWERS."""
    single: Tensor | None
    """(H, W) bool, the part that the answer names; None where nothing in the picture is the reason."""
    union: Tensor | None
    """(H, W) bool, all that the question needs; `single` is a part of it."""


def _exist(name: str) -> str:
    return f"is there a {name} ?"


def _count(plural: str) -> str:
    return f"how many {plural} ?"


def _colour(name: str) -> str:
    return f"what colour is the {name} ?"


def _side(side: str) -> str:
    return f"what is on the {side} ?"


def _relation(this: str, that: str) -> str:
    return f"is the {this} left or right of the {that} ?"


KINDS: dict[str, tuple[str, ...]] = {
    "exist": tuple(map(_exist, NAMES)),
    "count": tuple(map(_count, PLURALS)),
    "objects": (_count("objects"),),
    "colour": tuple(map(_colour, NAMES)),
    "side": (_side("left"), _side("right")),
    "relation": tuple(_relation(this, that) for this in NAMES for that in NAMES if this != that),
}
"""All questions that there are, by kind."""
ANSWERED: tuple[str, ...] = tuple(kind for kind in KINDS if kind != "colour")
"""The kinds that `konkyo/scenes-vqa` answers; of colours it has not learned enough (docs/vqa.md)."""
_KIND_OF = {text: kind for kind, texts in KINDS.items() for text in texts}
WORDS: tuple[str, ...] = tuple(sorted({word for text in _KIND_OF for word in text.split()}))
LONGEST = max(len(text.split()) for text in _KIND_OF)


def kind_of(text: str) -> str:
    """Returns the kind of a question. KonkyoError: a question that is none of KINDS."""
    return _KIND_OF[normalised(text)]


def normalised(text: str) -> str:
    """Returns a question as it stands in KINDS: small letters, one space between words, "?" at the end.

    KonkyoError: a question that is none of them.

    >>> normalised("How many  police_cars?")
    'how many police cars ?'
    """
    words = re.sub(r"[?_\s]+", " ", text.lower()).split()
    question = " ".join("colour" if word == "color" else word for word in [*words, "?"])
    if question not in _KIND_OF:
        offer = (_exist("cat"), _count("cats"), _count("objects"), _colour("cat"), _side("left"))
        raise KonkyoError(
            f"{text!r} is no question about drawn scenes. On offer: {'; '.join(offer)}; {_relation('cat', 'tulip')} "
            f"The objects: {', '.join(NAMES)}"
        )
    return question


def tokens(text: str) -> Tensor:
    """Returns a question's words as their places in WORDS plus 1, (LONGEST,) int64, zeros in front of shorter ones."""
    numbers = [1 + WORDS.index(word) for word in normalised(text).split()]
    return torch.tensor([0] * (LONGEST - len(numbers)) + numbers)


class Questions(torch.utils.data.Dataset[tuple[Scene, tuple[Question, ...]]]):
    """This draws `length` scenes of one to four objects, with questions of the given kinds about each.

    Every scene takes its objects from one to five pairs of twins, so that there are often several of a class.

    >>> scene, questions = Questions(10, seed=3)[0]
    >>> questions[0].text, questions[0].answer
    ('is there a steamboat ?', 'no')
    """

    def __init__(
        self, length: int = 1000, *, seed: int = 0, size: int = 128, kinds: Sequence[str] = ANSWERED, each: int = 1
    ) -> None:
        """Keeps the options; of every kind `each` questions are tried, and one that a scene does not allow is missing.

        KonkyoError: an unknown kind, or none.
        """
        if isinstance(kinds, str) or not kinds:
            raise KonkyoError(f"kinds: expected a list of names, got {kinds!r}. On offer: {', '.join(KINDS)}")
        for kind in kinds:
            if kind not in KINDS:
                raise unknown("kind of question", kind, KINDS)
        self.length, self.seed, self.size, self.kinds, self.each = length, seed, size, tuple(kinds), each

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Scene, tuple[Question, ...]]:
        if not -self.length <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        rng = np.random.default_rng([self.seed, index % self.length, 2])
        pairs = rng.permutation(len(CLASSES) // 2)[: rng.integers(1, len(CLASSES) // 2 + 1)]
        classes = [CLASSES[2 * pair + twin] for pair in sorted(pairs.tolist()) for twin in (0, 1)]
        scene = Scenes(self.length, seed=self.seed, size=self.size, objects=(1, MOST), classes=classes)[index]
        questions = [_ASKED[kind](scene, rng) for kind in self.kinds for _ in range(self.each)]
        return scene, tuple(question for question in questions if question is not None)

    def __iter__(self) -> Iterator[tuple[Scene, tuple[Question, ...]]]:
        return (self[index] for index in range(self.length))


TRIALS = 100
"""So many scenes are drawn at most for one that allows a question of the given kinds; half of them do."""


@synthetic
def questions(count: str, seed: int, *, kinds: str = "", size: str = "128") -> Samples:
    """Draws COUNT (1000) scenes that no shipped model was trained on, each with a question; kinds=exist+count."""
    if not re.fullmatch(r"\d*", count) or not re.fullmatch(r"\d+", size):
        raise KonkyoError(f"expected questions:200,kinds=exist+count,size=128; got {count!r} and size={size!r}")
    names = tuple(kinds.split("+")) if kinds else ANSWERED
    length = int(count or 1000)
    scenes = Questions(TRIALS * length, seed=UNSEEN + seed, size=int(size), kinds=names)
    order = tuple(f"question-{scenes.seed}-{index}" for index in range(length))
    note = "mask: all that the question needs; evidence: the part that the answer names"
    return Samples(order, partial(_sample, scenes), ANSWERS, note, "questions")


def _sample(scenes: Questions, index: int) -> Sample:
    """Returns a scene with one of its questions; kinds take turns, where a scene allows that."""
    trials = (scenes[index + trial * (len(scenes) // TRIALS)] for trial in range(TRIALS))
    scene, questions = next((scene, questions) for scene, questions in trials if questions)
    order = scenes.kinds[index % len(scenes.kinds) :] + scenes.kinds
    question = min(questions, key=lambda question: order.index(question.kind))
    box = None if question.union is None else around(question.union)
    thing = Annotation(question.answer, box, question.union, question.single)
    return Sample(f"question-{scenes.seed}-{index}", scene.image, question.answer, (thing,), question.text)


# --- what is asked, and what is true ----------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, values: Sequence[int]) -> int:
    return int(values[int(rng.integers(len(values)))])


def _any(masks: Tensor, chosen: Sequence[int]) -> Tensor | None:
    """Returns the union (H, W) of some of the masks (n, H, W); None where there are none."""
    return masks[list(chosen)].any(0) if chosen else None


def _of(scene: Scene, *classes: int) -> list[int]:
    """Lists the objects of these classes."""
    return [number for number, label in enumerate(scene.labels.tolist()) if label in classes]


def _twins_absent(scene: Scene) -> list[int]:
    """Lists the classes that are absent while their twins are there."""
    present = set(scene.labels.tolist())
    return sorted(label ^ 1 for label in present if label ^ 1 not in present)


def _ask_exist(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Asks for a class that is there, or one that is not; half of those have their twin in the picture."""
    present, twins = sorted(set(scene.labels.tolist())), _twins_absent(scene)
    absent = [label for label in range(len(CLASSES)) if label not in present and label not in twins]
    if rng.random() < 0.5:
        label, answer = _pick(rng, present), "yes"
    else:
        label, answer = _pick(rng, twins if twins and rng.random() < 0.5 else absent or twins), "no"
    both = _any(scene.evidence, _of(scene, label, label ^ 1))
    single = _any(scene.evidence, _of(scene, label if answer == "yes" else label ^ 1))
    return Question("exist", _exist(NAMES[label]), answer, single, both)


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Asks how many there are of a class, of one with several objects where there is one; a third are not there."""
    present, twins = sorted(set(scene.labels.tolist())), _twins_absent(scene)
    absent = [label for label in range(len(CLASSES)) if label not in present]
    several = [label for label in present if len(_of(scene, label)) > 1]
    if rng.random() < 1 / 3:
        label = _pick(rng, twins if twins and rng.random() < 0.5 else absent)
    else:
        label = _pick(rng, several if several and rng.random() < 0.7 else present)
    both = _any(scene.evidence, _of(scene, label, label ^ 1))
    single = _any(scene.evidence, _of(scene, label) or _of(scene, label ^ 1))
    return Question("count", _count(PLURALS[label]), str(len(_of(scene, label))), single, both)


def _ask_objects(scene: Scene, rng: np.random.Generator) -> Question | None:
    del rng
    masks = scene.masks.any(0)
    return Question("objects", _count("objects"), str(len(scene.labels)), masks, masks)


def _ask_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Asks for the colour of an object that is the only one of its class, where the colour has a clear name."""
    alone = [
        number
        for number, label in enumerate(scene.labels.tolist())
        if len(_of(scene, label)) == 1 and scene.colours[number]
    ]
    if not alone:
        return None
    number = _pick(rng, alone)
    body = scene.masks[number] & ~scene.evidence[number]
    text = _colour(NAMES[int(scene.labels[number])])
    return Question("colour", text, scene.colours[number], body, scene.masks[number])


def _middles(scene: Scene) -> Tensor:
    """Returns the x of the middle of every object's box, (n,), as a share of the width."""
    return (scene.boxes[:, 0] + scene.boxes[:, 2]) / (2 * scene.image.width)


def _ask_side(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Asks for the object that is farthest to one side, where no other is nearly as far."""
    right = bool(rng.integers(2))
    order = _middles(scene).argsort(descending=right)
    if len(order) < 2 or (_middles(scene)[order[0]] - _middles(scene)[order[1]]).abs() < GAP:
        return None
    number = int(order[0])
    answer = NAMES[int(scene.labels[number])]
    text = _side("right" if right else "left")
    return Question("side", text, answer, scene.evidence[number], scene.masks.any(0))


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Asks which of two objects is farther to the left; both are the only ones of their class."""
    alone = [number for number, label in enumerate(scene.labels.tolist()) if len(_of(scene, label)) == 1]
    if len(alone) < 2:
        return None
    this, that = rng.permutation(alone)[:2].tolist()
    x = _middles(scene)
    if (x[this] - x[that]).abs() < GAP:
        return None
    names = (NAMES[int(scene.labels[number])] for number in (this, that))
    single, union = _any(scene.evidence, (this, that)), _any(scene.masks, (this, that))
    return Question("relation", _relation(*names), "left" if x[this] < x[that] else "right", single, union)


_ASKED: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "exist": _ask_exist,
    "count": _ask_count,
    "objects": _ask_objects,
    "colour": _ask_colour,
    "side": _ask_side,
    "relation": _ask_relation,
}

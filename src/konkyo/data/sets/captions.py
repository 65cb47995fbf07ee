"""Captions of drawn scenes: a caption names one object or two, and of every scene it is known whether it is true."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from konkyo.data.sets.scenes import CLASSES, COLOURS, Scene

GAP = 0.1
"""So far, in widths of the picture, are the middles of two objects apart of which one is left of the other."""
_ANY = len(COLOURS)
"""The colour of a caption that names none."""


@dataclass(frozen=True)
class Caption:
    """A caption says that an object is there, or two of different classes, the first one left of the second or not."""

    label: int
    """Index into CLASSES."""
    colour: int = _ANY
    """Index into COLOURS; one more: no colour is named."""
    other: int = -1
    """Class of the second object; -1: the caption names one."""
    other_colour: int = _ANY
    left: bool = False
    """Whether it says that the first object is left of the second."""

    @property
    def text(self) -> str:
        """Returns the caption in its plainest words: "a red cat left of a taxi"."""
        first = _noun(self.label, self.colour)
        if self.other < 0:
            return first
        return f"{first} {'left of' if self.left else 'and'} {_noun(self.other, self.other_colour)}"

    def worded(self, rng: random.Random) -> str:
        """Returns the caption in one of several wordings: "a photo of a red cat", "a taxi to the right of a cat"."""
        first = _noun(self.label, self.colour)
        if self.other < 0:
            return rng.choice(_TEMPLATES).format(first)
        second = _noun(self.other, self.other_colour)
        if self.left:
            to = rng.choice(("", "to the "))
            phrases = (f"{first} {to}left of {second}", f"{second} {to}right of {first}")
        else:
            phrases = (f"{first} and {second}", f"{second} and {first}")
        return rng.choice(("{}", "{}", "a photo of {}")).format(rng.choice(phrases))

    def twin(self, *, second: bool = False) -> Caption:
        """Returns the caption with the twin of one of its classes in that one's place."""
        return replace(self, other=self.other ^ 1) if second else replace(self, label=self.label ^ 1)


_TEMPLATES = ("{}", "{}", "a photo of {}", "a photo of {}", "a drawing of {}", "a picture of {}", "there is {}")


def _noun(label: int, colour: int) -> str:
    words = CLASSES[label].replace("_", " ")
    if colour < _ANY:
        words = f"{COLOURS[colour]} {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


class Facts(NamedTuple):
    """Facts are what decides whether a caption is true of N scenes: 1 yes, 0 no, 0.5 not to be told."""

    objects: Tensor
    """(N, classes, colours + 1): such an object is there; the last: of whatever colour."""
    left: Tensor
    """(N, classes, classes): every object of the first class is left of every one of the second."""

    def mirrored(self, which: Tensor) -> Facts:
        """Returns the facts with the scenes in `which` (N,) bool mirrored."""
        return Facts(self.objects, torch.where(which[:, None, None], self.left.mT, self.left))

    def truth(self, captions: Sequence[Caption]) -> Tensor:
        """Returns whether each of T captions is true of each scene. -> (N, T)"""
        rows = [(c.label, c.colour, c.other, c.other_colour, c.left) for c in captions]
        label, colour, other, other_colour, left = torch.tensor(rows, dtype=torch.long).reshape(-1, 5).T
        true = self.objects[:, label, colour]
        second = self.objects[:, other, other_colour].where(other >= 0, torch.ones(()))
        beside = self.left[:, label, other].where(left > 0, torch.ones(()))
        return torch.minimum(torch.minimum(true, second), beside)


def facts_of(scenes: Sequence[Scene]) -> Facts:
    """Returns the facts of scenes. Two objects nearer than GAP, or on both sides, are in no order that is told."""
    objects = torch.zeros(len(scenes), len(CLASSES), len(COLOURS) + 1)
    left = torch.zeros(len(scenes), len(CLASSES), len(CLASSES))
    for n, scene in enumerate(scenes):
        labels = scene.labels.tolist()
        for label, colour in zip(labels, scene.colours, strict=True):
            objects[n, label, _ANY] = 1
            if colour:
                objects[n, label, COLOURS.index(colour)] = 1
        for label, colour in zip(labels, scene.colours, strict=True):
            if not colour:
                objects[n, label] = objects[n, label].clamp_min(0.5)
        middles = (scene.boxes[:, 0] + scene.boxes[:, 2]) / 2 / scene.image.width
        for a in set(labels):
            for b in set(labels) - {a}:
                way = middles[scene.labels == b][None] - middles[scene.labels == a][:, None]
                if (way > GAP).all():
                    left[n, a, b] = 1
                elif not (way < -GAP).all():
                    left[n, a, b] = 0.5
    return Facts(objects, left)


def true_caption(objects: Tensor, left: Tensor, rng: random.Random) -> Caption:
    """Returns a random caption that is true of a scene with these facts, (classes, colours + 1) and (classes, classes).

    Half of those of scenes with several classes name two of them, and of these most say which is left.
    """
    present = torch.nonzero(objects[:, _ANY] == 1).flatten().tolist()

    def coloured(label: int) -> int:
        named = torch.nonzero(objects[label, :_ANY] == 1).flatten().tolist()
        return rng.choice(named) if named and rng.random() < 0.5 else _ANY

    label = rng.choice(present)
    if len(present) == 1 or rng.random() < 0.4:
        return Caption(label, coloured(label))
    other = rng.choice([one for one in present if one != label])
    if left[other, label] == 1:
        label, other = other, label
    says = bool(left[label, other] == 1) and rng.random() < 0.7
    return Caption(label, coloured(label), other, coloured(other), says)


def near_misses(caption: Caption, rng: random.Random) -> tuple[Caption, Caption]:
    """Returns two captions that differ from a caption in one word: a twin, and another colour, side or class.

    Whether they are false of a scene is for its facts to say.
    """
    second = caption.other >= 0 and rng.random() < 0.5
    changes = []
    if caption.colour < _ANY:
        changes.append(replace(caption, colour=_another(caption.colour, len(COLOURS), rng)))
    if caption.other_colour < _ANY:
        changes.append(replace(caption, other_colour=_another(caption.other_colour, len(COLOURS), rng)))
    if caption.left:
        a, b = (caption.label, caption.colour), (caption.other, caption.other_colour)
        changes += [Caption(*b, *a, left=True)] * 2
    if not changes:
        taken = caption.other if second else caption.label
        new = _another(taken, len(CLASSES), rng)
        if new not in (caption.label, caption.other):
            changes.append(replace(caption, other=new) if second else replace(caption, label=new))
        else:
            changes.append(caption.twin(second=second))
    return caption.twin(second=second), rng.choice(changes)


def _another(value: int, count: int, rng: random.Random) -> int:
    return (value + rng.randrange(1, count)) % count


WORDS: tuple[str, ...] = (
    *sorted({word for name in CLASSES for word in name.split("_")} | set(COLOURS) | {"grey"}),
    *("a", "an", "and", "drawing", "in", "is", "left", "of", "on", "photo", "picture", "right", "the", "there", "to"),
    *("with", "image", "scene", "one"),
)
"""Words that captions are made of, and a few more."""

"""Findings: what a diagnosis of a model says, a sentence each, with its number, its error rate and its pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from PIL import Image
from torch import Tensor

Severity: TypeAlias = Literal["high", "medium", "low", "ok", "unknown"]
SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low", "unknown", "ok")
"""The worst first, which is the order of a report."""

Text: TypeAlias = Mapping[str, str]
"""The same words in every language of the reports, by the language's code: "en" and "ja"."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence is a picture that shows what a finding says."""

    picture: Image.Image
    caption: Text


@dataclass(frozen=True, eq=False)
class Finding:
    """A finding is what one question gave for one subject. NaN stands for a number that is not known."""

    question: str
    """As it is asked for: "cue", "head", "duplicates" ..."""
    severity: Severity
    subject: str
    """A class, an image, or "" for the whole model."""
    sentence: Text
    """What was found, in plain words with its numbers."""
    next_step: Text
    """What to do about it."""
    statistic: str
    """What `value` is, as in "mean fall of P(label) when covered, minus that of random windows"."""
    value: float
    low: float = math.nan
    """Of the 95 % interval."""
    high: float = math.nan
    p: float = math.nan
    """How probable so large a value is by chance alone."""
    p_adjusted: float = math.nan
    """The same for all subjects of the question together."""
    n: int = 0
    """How many images the number is of."""
    threshold: float = math.nan
    """The least value of this severity."""
    cost: int = 0
    """How many images were run forward for it."""
    evidence: tuple[Evidence, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    """Further numbers by name, such as those of a second test."""
    images: tuple[str, ...] = ()
    """The names of the images that it is about, where they are some of the data's."""


def worded(en: str, ja: str, **values: object) -> Text:
    """Returns two templates with the same values put in, by `str.format`."""
    return {"en": en.format(**values), "ja": ja.format(**values)}


def too_few(question: str, n: int, statistic: str, subject: str = "") -> Finding:
    """Returns the finding that so many images cannot tell, of a question that needs six."""
    return Finding(
        question,
        "unknown",
        subject,
        worded("Too few images to tell: {n}.", "画像が {n} 枚しかないため判断できません。", n=n),
        worded("Give six images or more.", "6 枚以上の画像を与えてください。"),
        statistic,
        math.nan,
        n=n,
    )


def too_few_maps(question: str, usable: Tensor, statistic: str, subject: str) -> Finding:
    """Returns the finding that too few images have maps that say something; `usable` (n,) bool are those."""
    return Finding(
        question,
        "unknown",
        subject,
        worded(
            "Too few images whose maps are not constant: {n} of {all}.",
            "マップが一定でない画像が {all} 枚中 {n} 枚しかないため判断できません。",
            n=int(usable.sum()),
            all=len(usable),
        ),
        worded(
            "Six are needed: give more images, or see with `konkyo explain` why maps are constant.",
            "6 枚必要です。画像を増やすか、マップが一定になる理由を `konkyo explain` で確かめてください。",
        ),
        statistic,
        math.nan,
        n=len(usable),
    )


NOTHING_TO_DO: Text = {"en": "Nothing to do.", "ja": "必要な作業はありません。"}
"""The next step of a finding that is "ok"."""

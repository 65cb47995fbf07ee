"""The page model: what a report shows, whatever result it came from. Builders (`of_*.py`) make it, `html.py` writes it.

A `Text` is the same words in English and Japanese (`words("...", "...")`); where one is missing, the other is shown.
Names of classes, images and methods are plain strings, which no language changes. NaN is a number that is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from PIL import Image
from torch import Tensor

from konkyo.evaluation.diagnose.findings import Evidence, Finding, Text
from konkyo.tasks.responses import Passage

LANGUAGES = ("en", "ja")
FLAGS = ("wrong", "unsure", "cue", "duplicate", "label?", "doubtful map")
"""The flags that the page has words for in every language; any other flag is shown as it is."""


def words(en: str, ja: str = "") -> Text:
    """Returns the words as a `Text`; without `ja` the English is shown in both languages."""
    return {"en": en, "ja": ja} if ja else {"en": en}


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A heat map is what one method shows for one image and target."""

    method: str
    values: Tensor
    """(h, w) raw, at the grid that it was made at; a negative value makes its scale signed."""
    limits: tuple[float, float] | None = None
    """The values of the first and the last colour, where maps share a scale; None: its own lowest and highest."""
    region: tuple[float, float, float, float] | None = None
    """The part of the map that lies on the picture, xyxy as shares of its width and height; None: all of it."""
    diagnosis: str = "ok"
    """`Diagnosis.kind`."""
    message: str = ""
    """`Diagnosis.message`."""
    caption: Text = field(default_factory=dict)
    """Words under it in the detail view, beside the method and the scale."""


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A neighbour is an image that resembles a row's image for the model."""

    picture: Image.Image | None
    name: str
    label: str = ""
    """Its true class."""
    similarity: float = math.nan
    """Cosine."""
    map: HeatMap | None = None


@dataclass(frozen=True, eq=False)
class ImageRow:
    """A row of the table of images: one image and one class (or box, ...) that was explained on it."""

    name: str
    picture: Image.Image | None = None
    """Any size; it is reduced for the page. Rows of the same picture object share it in the file."""
    box: tuple[float, float, float, float] | None = None
    """Of an explained detection, xyxy as shares of the picture's width and height."""
    maps: tuple[HeatMap, ...] = ()
    """One per method, the same methods in the same order in all rows; `m` cycles through them."""
    decision: str = ""
    """The class that the model decided."""
    probability: float = math.nan
    """Of the decision."""
    true_label: str = ""
    """"" where it is not known."""
    true_probability: float = math.nan
    """P(label): what the model gives the true label."""
    asked: str = ""
    """The class that the maps explain."""
    asked_probability: float = math.nan
    asked_rank: int | None = None
    """By probability; 1 is the highest."""
    passage: Passage | None = None
    """The words that the maps explain, in the answer that they are part of; rows of one answer link to each other."""
    flags: tuple[str, ...] = ()
    """Of FLAGS, or others. "wrong" is added by itself where decision and true label differ."""
    suspicion: float = math.nan
    """The higher, the more suspicious; NaN sorts last."""
    why: Text = field(default_factory=dict)
    """Why the decision is wrong, or what else is to be said of this image."""
    top: tuple[tuple[str, float], ...] = ()
    """The most probable classes with their probabilities, the highest first."""
    contrasts: tuple[HeatMap, ...] = ()
    """Further maps that the detail view alone shows, as that of decision against truth."""
    neighbours: tuple[Neighbour, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    """Further pictures of the detail view, as of a covered region."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Further numbers by name: a sortable column each."""

    @property
    def correct(self) -> bool | None:
        """Returns whether the decision is the true label; None where one of them is not known."""
        return None if not (self.decision and self.true_label) else self.decision == self.true_label


@dataclass(frozen=True, eq=False)
class ClassCard:
    """A class card is what is known of one class over all its images."""

    name: str
    n: int
    """How many images have this true label."""
    recall: float = math.nan
    precision: float = math.nan
    consistency: float = math.nan
    """L: the mean distance of its maps from their mean map."""
    low: float = math.nan
    high: float = math.nan
    alarm: Text = field(default_factory=dict)
    """What to be wary of, as of maps that are alike because of a marker."""
    mean_map: Tensor | None = None
    """(h, w) in [0, 1]."""
    mean_picture: Image.Image | None = None
    """Square; the mean of its pictures, drawn under the mean map."""
    typical: tuple[int, ...] = ()
    """The rows (indices in `Page.rows`) whose maps are nearest to the mean map, nearest first."""
    deviant: tuple[int, ...] = ()
    """The rows whose maps are farthest, farthest first."""
    confused: tuple[tuple[str, int], ...] = ()
    """(other class, how many of its images are given the one for the other, both ways), the most first."""
    evidence: tuple[Evidence, ...] = ()
    """As of the cue test, before and after."""


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """The confusion matrix says how many images of each class are given each class."""

    classes: tuple[str, ...]
    counts: Tensor
    """(K, K): true label down, decision across."""


@dataclass(frozen=True)
class Measure:
    """A measure is a number of a table with its interval."""

    value: float
    low: float = math.nan
    high: float = math.nan
    best: bool = False
    """Whether it is the best of its column."""
    worse: bool = False
    """Whether it is measurably worse than the best."""


Cell: TypeAlias = "str | int | float | Measure"


@dataclass(frozen=True, eq=False)
class TableBlock:
    """A table, with the buttons that copy it as CSV and Markdown."""

    title: Text
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: Text = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Line:
    """A line of a figure of curves, with its interval band where one is known."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, eq=False)
class CurveFigure:
    """A figure of curves, drawn as SVG."""

    title: Text
    x_title: Text
    y_title: Text
    lines: tuple[Line, ...]


@dataclass(frozen=True, eq=False)
class MatrixBlock:
    """A matrix of numbers with names, as of rank agreement between methods or distances between classes."""

    title: Text
    names: tuple[str, ...]
    values: Tensor
    """(K, K)."""
    note: Text = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Shortlist:
    """A shortlist names the images to look at first for one reason, and says whether it used the labels."""

    title: Text
    note: Text
    rows: tuple[int, ...]
    """Indices in `Page.rows`, the first to look at first."""


@dataclass(frozen=True, eq=False)
class Page:
    """A page is everything that a report shows, in the order in which it shows it."""

    title: str
    verdict: Text = field(default_factory=dict)
    """One sentence. Without one, the page counts its findings or its wrong decisions."""
    counts: tuple[tuple[Text, str], ...] = ()
    """(what is counted, the number), such as images, accuracy with its interval, findings."""
    findings: tuple[Finding, ...] = ()
    """The page sorts them by severity, and leaves those of one severity in this order."""
    not_asked: Mapping[str, Text] = field(default_factory=dict)
    """Which questions were not asked, and why."""
    shortlists: tuple[Shortlist, ...] = ()
    rows: tuple[ImageRow, ...] = ()
    ordered: bool = False
    """Whether the rows stand in the order in which they are to be looked at; else wrong decisions are shown first."""
    classes: tuple[ClassCard, ...] = ()
    confusion: ConfusionMatrix | None = None
    tables: tuple[TableBlock, ...] = ()
    curves: tuple[CurveFigure, ...] = ()
    matrices: tuple[MatrixBlock, ...] = ()
    figures: tuple[Evidence, ...] = ()
    """Whole pictures, as the figures of a study."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """What made the page, by name: see `provenance.py`."""
    command: str = ""
    """The command line that makes it again, with its paths shortened to names."""
    notes: tuple[Text, ...] = ()
    """Sentences that a reader of the numbers has to know."""
    links: tuple[tuple[Text, str], ...] = ()
    """(what it is called, file) of the pages that belong to a report of several; "" in place of this one's file."""

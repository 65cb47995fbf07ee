"""The question "text": where do pictures have marks like printed text? It is a label for windows, and no alarm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from konkyo.data.samples import Box, Samples
from konkyo.errors import ImageError
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.evidence import beside, framed
from konkyo.evaluation.diagnose.findings import Evidence, Finding
from konkyo.utils.statistics import interval_of_share

LIKE_TEXT = 0.2
"""From this score on a window is called like printed text."""
_HEIGHT, _WIDTH = 0.1, 0.2
"""The window's, as shares of the picture's sides."""
_LONGEST = 320
"""Larger pictures are made smaller first: text is read at any size, and edges are counted per pixel."""
_STEP = 0.2
"""The least difference of neighbouring grey values, of 1, that is an edge."""
_BLACK, _WHITE = 0.15, 0.85
OFTEN = 0.3
"""A class has such marks often if so large a share of its pictures has one."""
_SHOWN, _LEAST = 4, 6


@dataclass(frozen=True)
class TextMark:
    """The window of a picture that is most like printed text."""

    score: float
    """The share of its pixels at an edge times the share that is nearly black or nearly white."""
    box: Box
    """xyxy in pixels of the picture."""


def text_mark(picture: Image.Image, within: Box | None = None) -> TextMark:
    """Returns the window, a tenth of the height and a fifth of the width, that is most like printed text.

    `within`: only windows whose middle lies in this box (xyxy, pixels) are looked at. The score tells nothing of what a
    model reads, and white letters without a box behind them are often missed.
    """
    scale = min(1.0, _LONGEST / max(picture.size))
    size = (max(2, round(picture.width * scale)), max(2, round(picture.height * scale)))
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.BOX), dtype=np.float64) / 255
    height, width = max(1, round(_HEIGHT * size[1])), max(1, round(_WIDTH * size[0]))
    scores = _window_means(_edges(grey), height, width) * _window_means(_extreme(grey), height, width)
    if within is not None:
        down, across = np.ogrid[: scores.shape[0], : scores.shape[1]]
        y, x = (down + height / 2) / scale, (across + width / 2) / scale
        x0, y0, x1, y1 = within
        scores = np.where((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1), scores, -1.0)
    top, left = (int(place) for place in np.unravel_index(int(scores.argmax()), scores.shape))
    box = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
    return TextMark(max(0.0, float(scores[top, left])), box)


def share_like_text(pictures: Sequence[Image.Image], windows: Sequence[Box]) -> float:
    """Returns the share of pictures that have a mark like printed text in their window (xyxy, pixels)."""
    marks = [text_mark(picture, window) for picture, window in zip(pictures, windows, strict=True)]
    return float(np.mean([mark.score >= LIKE_TEXT for mark in marks])) if marks else math.nan


def _edges(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    down, across = (np.abs(np.diff(grey, axis=axis, append=np.take(grey, [-1], axis))) for axis in (0, 1))
    return np.asarray(np.maximum(down, across) >= _STEP, dtype=np.float64)


def _extreme(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((grey <= _BLACK) | (grey >= _WHITE), dtype=np.float64)


def _window_means(values: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Returns the means over all windows of a size that lie inside, by sums from the corner."""
    sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    return np.asarray(inside / (height * width))


def text_finding(data: Samples, labels: Sequence[str | None]) -> Finding:
    """Returns how many pictures have a mark like printed text, and of which class most do. It is never an alarm.

    `labels`: of all pictures, None where unknown.
    """
    marks = dict[int, TextMark]()
    for index in range(len(data)):
        try:
            marks[index] = text_mark(data[index].image)
        except ImageError:
            continue
    like = sorted((i for i, mark in marks.items() if mark.score >= LIKE_TEXT), key=lambda i: -marks[i].score)
    n = len(marks)
    low, high = interval_of_share(len(like), n)
    total = Counter(label for i in marks if (label := labels[i]) is not None)
    of_class = Counter(label for i in like if (label := labels[i]) is not None)
    several = [label for label in of_class if total[label] >= _LEAST and of_class[label] >= OFTEN * total[label]]
    most = max(several, key=lambda label: (of_class[label] / total[label], label), default=None)
    where = ("", "")
    if most is not None:
        where = (
            f", most often in {most} ({of_class[most]} of {total[most]})",
            f"最も多いのは {most} です（{total[most]} 枚中 {of_class[most]} 枚）。",
        )
    return Finding(
        "text",
        "unknown",
        "",
        {
            "en": f"{len(like)} of {n} pictures have a window like printed text{where[0]}. This says nothing of what "
            "the model reads, and stripes look like text, too.",
            "ja": f"{n} 枚のうち {len(like)} 枚に印刷文字に似た部分があります。{where[1]}"
            "モデルが読んでいるとは限らず、縞模様も文字に似て見えます。",
        },
        {
            "en": 'Look at the windows. The question "cue" says whether a class rests on such a place.',
            "ja": "その部分を見てください。クラスがそこに頼るかは「cue」の結果で分かります。",
        },
        "share of pictures with a window like printed text",
        len(like) / n if n else math.nan,
        low,
        high,
        n=n,
        threshold=LIKE_TEXT,
        evidence=_windows(data, [(i, marks[i]) for i in like[:_SHOWN]]),
        values={
            f"share in {label}": of_class[label] / count for label, count in sorted(total.items()) if count >= _LEAST
        },
    )


def _windows(data: Samples, marks: Sequence[tuple[int, TextMark]]) -> tuple[Evidence, ...]:
    if not marks:
        return ()
    rows = []
    for index, mark in marks:
        picture, (x0, y0, x1, y1) = data[index].image, map(round, mark.box)
        rows.append([framed(picture, mark.box), picture.crop((x0, y0, x1, y1))])
    scores = ", ".join(f"{mark.score:.2f}" for _, mark in marks)
    sheet = beside([[image for row in rows[k : k + 2] for image in row] for k in range(0, len(rows), 2)])
    return (
        Evidence(
            sheet,
            {
                "en": f"The windows most like text, and enlarged; scores {scores}, of which {LIKE_TEXT} count.",
                "ja": f"文字に最も似た部分とその拡大。スコア {scores}（{LIKE_TEXT} 以上を数えます）。",
            },
        ),
    )


@question("text")
def text(collected: Collected) -> tuple[Finding, ...]:
    """Counts pictures with marks like printed text."""
    labels: list[str | None] = [None] * len(collected)
    if collected.labels is not None:
        labels = [collected.classes[i] for i in collected.labels.tolist()]
    return (text_finding(collected.data, labels),)

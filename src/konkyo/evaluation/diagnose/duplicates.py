"""The question "duplicates": are pictures in the data twice, or in the training data, too?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from konkyo.data.hashes import LIMIT, LIMIT_GREY, Hashes, Pair, is_grey, near_pairs
from konkyo.data.samples import Samples
from konkyo.errors import ImageError
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.evidence import bars, beside
from konkyo.evaluation.diagnose.findings import NOTHING_TO_DO, Evidence, Finding, Severity, Text
from konkyo.utils.statistics import interval_of_share

SAME = 0.95
"""From this correlation of thumbnails on, a pair is called one picture; below, alike."""
FEW = 0.05
"""From this share of duplicates on, a finding is of the next severity."""
_SHOWN, _SIDE = 6, 32
_STATISTIC = "share of the images with a duplicate"


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of a data set that could be read, as far as duplicates are looked for."""

    data: Samples
    rows: tuple[int, ...]
    """Their indices in the data."""
    hashes: Hashes
    thumbnails: NDArray[np.uint8]
    """(n, 32, 32) grey: pairs are compared without opening their pictures again."""
    grey: float
    """The share of pictures without colours."""
    labels: Sequence[str] = ()
    """Of all samples of the data, where they are known."""

    @classmethod
    def of(cls, data: Samples, labels: Sequence[str] = ()) -> Pictures:
        """Opens all pictures, one by one; those that cannot be read are left out."""
        rows, hashes, thumbnails, grey = list[int](), list[Hashes](), list[NDArray[np.uint8]](), list[bool]()
        for index in range(len(data)):
            try:
                picture = data[index].image
            except ImageError:
                continue
            rows.append(index)
            hashes.append(Hashes.of(iter([picture])))
            thumbnails.append(np.asarray(picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)))
            grey.append(is_grey(picture))
        if not rows:
            return cls(data, (), Hashes.of(iter([])), np.zeros((0, _SIDE, _SIDE), np.uint8), 0.0, labels)
        both = (np.concatenate([getattr(h, name) for h in hashes]) for name in ("upright", "mirrored"))
        return cls(data, tuple(rows), Hashes(*both), np.stack(thumbnails), float(np.mean(grey)), labels)

    def name(self, row: int) -> str:
        """Returns a picture's name."""
        return self.data.names[self.rows[row]]

    def picture(self, row: int) -> Image.Image:
        """Opens a picture again."""
        return self.data[self.rows[row]].image

    def label(self, row: int) -> str | None:
        """Returns a picture's class, where it is known."""
        return self.labels[self.rows[row]] if self.labels else None


@dataclass(frozen=True, eq=False)
class Duplicates:
    """The pairs of pictures that may be one, within a data set or between two."""

    first: Pictures
    second: Pictures
    """The same object as `first` where pairs are within one data set."""
    pairs: tuple[Pair, ...]
    same: tuple[bool, ...]
    """Whether the two pictures of a pair are one, as far as their thumbnails tell."""
    histogram: NDArray[np.int64]
    """(65,) all pairs by the number of bits that differ."""
    limit: int

    @classmethod
    def of(cls, first: Pictures, second: Pictures | None = None) -> Duplicates:
        """Compares all pictures with all others."""
        grey = max(first.grey, first.grey if second is None else second.grey)
        limit = LIMIT_GREY if grey > 0.5 else LIMIT
        pairs, histogram = near_pairs(first.hashes, second.hashes if second is not None else None, limit)
        second = second or first
        small = first.thumbnails, second.thumbnails
        same = tuple(_correlation(small[0][p.first], small[1][p.second]) >= SAME for p in pairs)
        return cls(first, second, tuple(pairs), same, histogram, limit)

    @property
    def images(self) -> list[int]:
        """Returns the rows of the first data set that have a duplicate; of a pair within it, all but the earliest."""
        later = {pair.first if self.second is not self.first else pair.second for pair in self.pairs}
        return sorted(later)

    @property
    def at_odds(self) -> list[Pair]:
        """Returns the pairs whose two pictures have different labels."""
        named = [(pair, self.first.label(pair.first), self.second.label(pair.second)) for pair in self.pairs]
        return [pair for pair, one, other in named if one is not None and other is not None and one != other]


def _correlation(thumbnail: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Returns Pearson's correlation of two thumbnails, or of one and the other's mirror image: the higher."""
    one, two = (of - of.mean(dtype=np.float64) for of in (thumbnail, other))
    norms = float(np.linalg.norm(one) * np.linalg.norm(two))
    if norms == 0:
        return float(not one.any() and not two.any())  # two flat pictures are alike
    return float(max((one * two).sum(), (one * two[:, ::-1]).sum()) / norms)


def duplicate_findings(
    duplicates: Duplicates, correct: NDArray[np.bool_] | None = None, *, training: bool = False
) -> tuple[Finding, ...]:
    """Returns what duplicates mean: for the accuracy, and for labels that contradict each other.

    `correct` (n,): whether the pictures of the first data set are decided rightly, by their rows there. `training`: the
    second data set is what the model was trained on.
    """
    n, images = len(duplicates.first.rows), duplicates.images
    subject = "training images" if training else "the data"
    share = len(images) / n if n else float("nan")
    low, high = interval_of_share(len(images), n)
    severity: Severity = "ok"
    if images:
        severity = "medium" if share >= FEW else "low"
        severity = {"medium": "high", "low": "medium"}.get(severity, severity) if training else severity  # type: ignore[assignment]
        if not any(duplicates.same):
            severity = "low"
    values = _values(duplicates, correct)
    findings = [
        Finding(
            "duplicates",
            severity,
            subject,
            _sentence(duplicates, values, training=training) if images else _none(duplicates, training=training),
            _next_step(duplicates, training=training),
            _STATISTIC,
            share,
            low,
            high,
            n=n,
            threshold=FEW if share >= FEW else 1 / max(1, n),
            evidence=_evidence(duplicates),
            values=values,
            images=tuple(map(duplicates.first.name, images)),
        )
    ]
    if odd := duplicates.at_odds:
        findings.append(_contradiction(duplicates, odd, subject))
    return tuple(findings)


def _values(duplicates: Duplicates, correct: NDArray[np.bool_] | None) -> dict[str, float]:
    images = duplicates.images
    values = {
        "bits that may differ": float(duplicates.limit),
        "pairs": float(len(duplicates.pairs)),
        "pairs of the same picture": float(sum(duplicates.same)),
        "pairs compared": float(duplicates.histogram.sum()),
        "smallest distance": float(np.flatnonzero(duplicates.histogram)[0]) if duplicates.histogram.any() else 64.0,
    }
    if correct is not None and len(correct) > len(images):
        others = np.setdiff1d(np.arange(len(correct)), images)
        values |= {"accuracy": float(correct.mean()), "accuracy without duplicates": float(correct[others].mean())}
        if images:
            values["accuracy of duplicates"] = float(correct[images].mean())
    return values


def _sentence(duplicates: Duplicates, values: dict[str, float], *, training: bool) -> Text:
    n, count, pairs, same = (
        len(duplicates.first.rows), len(duplicates.images), len(duplicates.pairs), sum(duplicates.same),
    )  # fmt: skip
    where = ("are in the training images, too", "学習用の画像にもあります") if training else (
        "are in the data a second time", "データの中に重複しています",
    )  # fmt: skip
    accuracy = ("", "")
    if "accuracy" in values:
        with_, without = values["accuracy"], values["accuracy without duplicates"]
        accuracy = (
            f" Accuracy is {with_:.2f}, and {without:.2f} without them.",
            f"正解率は {with_:.2f}、それらを除くと {without:.2f} です。",
        )
    pairs_en = f"one of the {pairs} pairs is" if same == 1 else f"{same} of the {pairs} pairs are"
    return {
        "en": f"{count} of {n} images {where[0]}, or look much alike: {pairs_en} the same picture, by their thumbnails."
        + accuracy[0],
        "ja": f"{n} 枚のうち {count} 枚が{where[1]}（またはよく似ています）。"
        f"{pairs} 組のうち {same} 組は縮小画像で同じ画像です。" + accuracy[1],
    }


def _none(duplicates: Duplicates, *, training: bool) -> Text:
    nearest, total = int(np.argmax(duplicates.histogram > 0)), int(duplicates.histogram.sum())
    where = ("between the data and the training images", "データと学習用画像の間") if training else (
        "in the data", "データの中",
    )  # fmt: skip
    limit = duplicates.limit
    sentences = (
        ("Seen would be: saved again, made smaller, mirrored, and most crops of 5 %; not crops of 10 %.",
         "再保存、縮小、反転、5 % の切り抜きの多くは見つかります。10 % の切り抜きは見つかりません。")
        if limit == LIMIT
        else ("Seen would be: saved again, made smaller, mirrored; only half of the crops of 5 %.",
              "再保存、縮小、反転は見つかります。5 % の切り抜きは半分ほどしか見つかりません。")
    )  # fmt: skip
    return {
        "en": f"No duplicates {where[0]}: the nearest of {total} pairs differ in {nearest} of 64 bits (at most {limit} "
        f"count). {sentences[0]}",
        "ja": f"{where[1]}に重複はありません。{total} 組のうち最も近い組は 64 ビット中 {nearest} ビット違います"
        f"（{limit} 以下を重複とします）。{sentences[1]}",
    }


def _next_step(duplicates: Duplicates, *, training: bool) -> Text:
    if not duplicates.pairs:
        return NOTHING_TO_DO
    if not any(duplicates.same):
        return {
            "en": "Look at the pairs: slices or frames beside each other are alike; keep those of one patient or video "
            "in one part of the data. Other pairs may be alike by chance.",
            "ja": "組を見てください。隣り合う断面やコマはよく似ています。同じ患者や動画の画像は同じ側に置いてください。"
            "偶然似ているだけの組もあります。",
        }
    if training:
        return {
            "en": "Take these images out of the test data, and report the accuracy without them; split by patient, "
            "scene or video before you train.",
            "ja": "これらの画像を評価データから除き、除いた正解率を報告してください。"
            "学習の前に患者・場面・動画ごとに分けてください。",
        }
    return {
        "en": "Keep one image of each pair: copies count twice, and split into parts at random they leak.",
        "ja": "各組から 1 枚だけ残してください。重複は二重に数えられ、無作為に分けると学習側と評価側にまたがります。",
    }


def _contradiction(duplicates: Duplicates, pairs: Sequence[Pair], subject: str) -> Finding:
    pair = pairs[0]
    one, other = duplicates.first.label(pair.first), duplicates.second.label(pair.second)
    same = dict(zip(duplicates.pairs, duplicates.same, strict=True))
    certain = sum(same[p] for p in pairs)
    names = (duplicates.first.name(pair.first), duplicates.second.name(pair.second))
    return Finding(
        "duplicates",
        "medium" if certain else "low",
        f"labels, {subject}",
        {
            "en": f"{len(pairs)} pairs of pictures that are alike have two labels, such as {names[0]} ({one}) and "
            f"{names[1]} ({other}); {certain} of them are the same picture, by their thumbnails.",
            "ja": f"よく似た画像のうち {len(pairs)} 組はラベルが違います。"
            f"例: {names[0]}（{one}）と {names[1]}（{other}）。そのうち {certain} 組は縮小画像で同じ画像です。",
        },
        {
            "en": "Check which of both labels is right.",
            "ja": "どちらのラベルが正しいか確かめてください。",
        },
        "pairs with two labels",
        float(len(pairs)),
        n=len(duplicates.first.rows),
        threshold=1.0,
        evidence=_evidence(duplicates, pairs)[:1],
    )


def _evidence(duplicates: Duplicates, pairs: Sequence[Pair] | None = None) -> tuple[Evidence, ...]:
    chosen = duplicates.pairs if pairs is None else pairs
    different = sorted(chosen, key=lambda p: -p.distance)[: _SHOWN // 2] if len(chosen) > _SHOWN else []
    shown = [*chosen[: _SHOWN - len(different)], *different[::-1]]
    pictures = [(duplicates.first.picture(p.first), duplicates.second.picture(p.second)) for p in shown]
    bits = ", ".join(str(p.distance) for p in shown)
    histogram = Evidence(
        bars(duplicates.histogram.tolist(), duplicates.limit),
        {
            "en": f"Pairs by the bits that differ, 0 to 64 (root of the count); up to {duplicates.limit} in orange.",
            "ja": f"違うビット数 0〜64 ごとの組の数（平方根）。{duplicates.limit} 以下は橙色。",
        },
    )
    if not shown:
        return (histogram,)
    sheet = Evidence(
        beside([[image for pair in pictures[row : row + 2] for image in pair] for row in range(0, len(pictures), 2)]),
        {
            "en": f"Pairs, two in a row, the nearest first and the most different last; bits that differ: {bits}.",
            "ja": f"組（1 行に 2 組）。近い組から、最後は最も違う組。違うビット数: {bits}。",
        },
    )
    return sheet, histogram


@question("duplicates")
def duplicates(collected: Collected) -> tuple[Finding, ...]:
    """Looks for duplicates within the data, and between the data and the training images."""
    correct: NDArray[np.bool_] | None = None if collected.labels is None else collected.correct.numpy()
    pictures = _pictures(collected)
    findings = duplicate_findings(Duplicates.of(pictures), correct)
    if collected.train is None:
        return findings
    return *duplicate_findings(Duplicates.of(pictures, _pictures(collected.train)), correct, training=True), *findings


def _pictures(collected: Collected) -> Pictures:
    labels = () if collected.labels is None else [collected.classes[i] for i in collected.labels.tolist()]
    return Pictures.of(collected.data, labels)

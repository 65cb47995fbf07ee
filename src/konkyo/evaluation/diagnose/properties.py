"""The question "properties": does brightness, size or file type alone tell the classes apart?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from konkyo.data.samples import Samples
from konkyo.errors import ImageError
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.evidence import beside
from konkyo.evaluation.diagnose.findings import NOTHING_TO_DO, Evidence, Finding, Severity, Text

STRONG = 0.8
"""From this AUROC on, upwards or downwards, a property is said to tell a class apart."""
_LEAST = 6
"""Images of a class, fewer of which say nothing."""
_FROM_OUTSIDE = ("pixels", "aspect ratio", "file type")
"""What no class is like by nature: it comes from how pictures were made or collected."""
_JAPANESE = {
    "brightness": "明るさ", "contrast": "コントラスト", "saturation": "彩度", "sharpness": "鮮鋭度",
    "pixels": "画素数", "aspect ratio": "縦横比", "file type": "ファイル形式",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Properties:
    """The properties of n pictures: a column each."""

    names: tuple[str, ...]
    values: NDArray[np.float64]
    """(n, m)"""
    rows: tuple[int, ...]
    """The indices of the pictures in their data; those that cannot be read are left out."""

    @classmethod
    def of(cls, data: Samples) -> Properties:
        """Measures all pictures, one by one."""
        rows, values = list[int](), list[list[float]]()
        for index in range(len(data)):
            try:
                values.append(picture_properties(data[index].image))
            except ImageError:
                continue
            rows.append(index)
        kinds = [PurePath(data.names[row]).suffix.lower() for row in rows]
        several = sorted(set(kinds)) if len(set(kinds)) > 1 else []
        types = np.array([[float(kind == one) for one in several] for kind in kinds]).reshape(len(rows), -1)
        names = ("brightness", "contrast", "saturation", "sharpness", "pixels", "aspect ratio")
        columns = np.array(values).reshape(len(rows), len(names))
        return cls(
            (*names, *(f"file type {one or '(none)'}" for one in several)), np.hstack([columns, types]), tuple(rows)
        )


def picture_properties(picture: Image.Image) -> list[float]:
    """Returns a picture's brightness, contrast, saturation, sharpness, number of pixels, and width by height.

    The first three are means and a standard deviation of values from 0 to 1; sharpness is the variance of the Laplacian
    of the grey picture, 256 pixels long.
    """
    longest = 256 / max(picture.size)
    size = (max(3, round(picture.width * longest)), max(3, round(picture.height * longest)))
    small = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    grey = small.convert("L")
    pixels = np.asarray(grey, dtype=np.float64) / 255
    saturation = np.asarray(small.convert("HSV"), dtype=np.float64)[..., 1] / 255
    kernel = ImageFilter.Kernel((3, 3), (0, -1, 0, -1, 4, -1, 0, -1, 0), scale=1, offset=128)
    edges = np.asarray(grey.filter(kernel), dtype=np.float64)[1:-1, 1:-1] / 255
    return [
        float(pixels.mean()), float(pixels.std()), float(saturation.mean()), float(edges.var()),
        float(picture.width * picture.height), picture.width / picture.height,
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Association:
    """An association says how well each property alone tells each class from all others."""

    auroc: NDArray[np.float64]
    """(K, m): how probable a picture of the class has more of the property than one of another class."""
    p: NDArray[np.float64]
    """(K, m) of permuted labels, each alone."""
    p_adjusted: NDArray[np.float64]
    """(K, m) against the largest of all classes and properties."""
    spread: NDArray[np.float64]
    """(K, m) the standard deviation of the AUROC under permuted labels."""
    largest: NDArray[np.float64]
    """(resamples,) the largest distance of any AUROC from 1/2 by chance, in these deviations."""


def association(
    values: NDArray[np.float64], labels: NDArray[np.int64], kinds: int, *, resamples: int = 1000, seed: int = 0
) -> Association:
    """Returns the AUROC (K, m) of properties (n, m) for classes (n,), and how probable chance gives as much.

    Labels are permuted over the images. AUROC - 1/2 is divided by its standard deviation under the permutation, and
    p-values of all together compare with the largest of all K m numbers (Westfall and Young, 1993).
    """
    from scipy.stats import rankdata

    n, columns = values.shape
    ranks = rankdata(values, axis=0) if n else values
    counts = np.bincount(labels, minlength=kinds).astype(np.float64)[:, None]
    sizes = counts * (n - counts)
    spread = np.sqrt(sizes * (n + 1) / 12 * np.maximum(_untied(ranks), 1e-300))
    classes = np.arange(kinds)[:, None]

    def sums(of: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray((of == classes).astype(np.float64) @ ranks - counts * (n + 1) / 2)

    actual = sums(labels)
    alive = (sizes > 0) & (np.ptp(ranks, axis=0) > 0)
    generator = np.random.default_rng(seed)
    above, above_all, largest = np.zeros((kinds, columns)), np.zeros((kinds, columns)), np.zeros(resamples)
    scaled = np.where(alive, np.abs(actual) / np.where(alive, spread, 1), 0)
    for draw in range(resamples):
        statistic = np.where(alive, np.abs(sums(generator.permutation(labels))) / np.where(alive, spread, 1), 0)
        largest[draw] = statistic.max(initial=0)
        above += statistic >= scaled - 1e-9
        above_all += largest[draw] >= scaled - 1e-9
    auroc = np.where(sizes > 0, 0.5 + actual / np.maximum(sizes, 1), np.nan)
    p, p_adjusted = ((1 + count) / (1 + resamples) for count in (above, above_all))
    return Association(auroc, p, p_adjusted, spread / np.maximum(sizes, 1), largest)


def _untied(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns by which factor ties make the variance of rank sums smaller, (m,)."""
    n = len(ranks)
    ties = np.array([(np.unique(column, return_counts=True)[1].astype(np.float64) ** 3).sum() for column in ranks.T])
    return np.asarray(1 - (ties - n) / max(n**3 - n, 1))


def property_findings(
    measured: Properties,
    labels: NDArray[np.int64],
    classes: Sequence[str],
    data: Samples,
    *,
    alpha: float = 0.01,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Returns a finding per class and property that tell it apart, or one that says that none does.

    `labels` (n,) are the classes' indices, a row of `measured` each.
    """
    counts = np.bincount(labels, minlength=len(classes))
    enough = [c for c in range(len(classes)) if counts[c] >= _LEAST and counts[c] < len(labels)]
    if len(labels) < 2 * _LEAST or not enough:
        return (_too_few(len(labels)),)
    result = association(measured.values, labels, len(classes), resamples=resamples, seed=seed)
    findings = [
        _finding(measured, labels, classes, data, result, c, column)
        for c in (enough if len(set(labels.tolist())) > 2 else enough[-1:])
        for column in range(len(measured.names))
        if abs(result.auroc[c, column] - 0.5) >= STRONG - 0.5 and result.p_adjusted[c, column] <= alpha
    ]
    if findings:
        return tuple(sorted(findings, key=lambda finding: (finding.severity != "medium", -abs(finding.value - 0.5))))
    return (_none(measured.names, labels, classes, result, enough, alpha),)


def _none(
    names: Sequence[str],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    result: Association,
    enough: Sequence[int],
    alpha: float,
) -> Finding:
    """Returns the finding that no property tells a class, with the strongest there is."""
    counts = np.bincount(labels, minlength=len(classes))
    strongest = np.abs(result.auroc[list(enough)] - 0.5)
    c, column = np.unravel_index(int(np.nanargmax(strongest)), strongest.shape)
    where, value = enough[int(c)], float(result.auroc[enough[int(c)], column])
    name = names[int(column)]
    small = sum(0 < count < _LEAST for count in counts)
    untested = (
        (
            f" Not tested: classes with fewer than {_LEAST} images, {small}.",
            f"画像が {_LEAST} 枚未満の {small} クラスは検査していません。",
        )
        if small
        else ("", "")
    )
    reach = 0.5 + float(np.quantile(result.largest, 1 - alpha) * result.spread[where, column])
    return Finding(
        "properties",
        "ok",
        "",
        {
            "en": f"No property of the pictures alone tells a class apart: the strongest is {name} of "
            f"{classes[where]} (AUROC {value:.2f}). From {max(STRONG, reach):.2f} on it would have been named."
            + untested[0],
            "ja": f"画像の性質だけで分かるクラスはありません。最も強いのは {classes[where]} の{_japanese(name)}"
            f"（AUROC {value:.2f}）です。{max(STRONG, reach):.2f} 以上なら報告されました。" + untested[1],
        },
        NOTHING_TO_DO,
        "AUROC of one property for one class",
        value,
        p=float(result.p[where, column]),
        p_adjusted=float(result.p_adjusted[where, column]),
        n=len(labels),
        threshold=STRONG,
    )


def _japanese(name: str) -> str:
    key = next(key for key in _JAPANESE if name.startswith(key))
    return _JAPANESE[key] + name.removeprefix(key)


def _too_few(n: int) -> Finding:
    return Finding(
        "properties",
        "unknown",
        "",
        {
            "en": f"Properties: {n} images with labels are too few, {_LEAST} of a class and as many others are needed.",
            "ja": f"性質: ラベル付き画像が {n} 枚では足りません。1 クラスに {_LEAST} 枚と、他に同じ数が必要です。",
        },
        {"en": "Give more images.", "ja": "画像を増やしてください。"},
        "AUROC of one property for one class",
        float("nan"),
        n=n,
    )


def _finding(
    measured: Properties,
    labels: NDArray[np.int64],
    classes: Sequence[str],
    data: Samples,
    result: Association,
    c: int,
    column: int,
) -> Finding:
    name, value = measured.names[column], float(result.auroc[c, column])
    outside = name.startswith(_FROM_OUTSIDE)
    severity: Severity = "medium" if outside else "low"
    more = value > 0.5
    class_name = classes[c]
    of_class, of_others = (float(np.median(measured.values[mask, column])) for mask in (labels == c, labels != c))
    numbers = {"median of the class": of_class, "median of the others": of_others}
    if name.startswith("file type"):
        numbers = {
            "share in the class": float(measured.values[labels == c, column].mean()),
            "share in the others": float(measured.values[labels != c, column].mean()),
        }
    form = ".0%" if name.startswith("file type") else ".3g"
    one, other = (format(number, form) for number in numbers.values())
    sentence: Text = {
        "en": f"{name[0].upper()}{name[1:]} alone tells {class_name} from the other classes: "
        f"{'more' if more else 'less'}, {one} against {other} (AUROC {value:.2f}).",
        "ja": f"{_japanese(name)}だけで {class_name} を他のクラスと区別できます: {'高い' if more else '低い'}、"
        f"{one} 対 {other}（AUROC {value:.2f}）。",
    }
    step: Text = (
        {
            "en": "Pictures of this class were made or collected in another way. Bring all to one size and format, and "
            "test on pictures of one source. This does not say that the model uses it.",
            "ja": "このクラスの画像は別の方法で作られたか集められています。大きさと形式をそろえ、"
            "同じ出所の画像で評価してください。モデルがこれを使っているとは限りません。",
        }
        if outside
        else {
            "en": "Is that what the class is like, as forests are dark? If not, balance it in the data. This does not "
            "say that the model uses it: change it in other pictures, and look at the scores.",
            "ja": "それはクラス本来の特徴ですか（森は暗い、など）。そうでなければデータで均してください。"
            "モデルがこれを使っているとは限りません。他の画像で変えてスコアを見てください。",
        }
    )
    return Finding(
        "properties",
        severity,
        class_name,
        sentence,
        step,
        f"AUROC of {name} for the class",
        value,
        p=float(result.p[c, column]),
        p_adjusted=float(result.p_adjusted[c, column]),
        n=len(labels),
        threshold=STRONG if more else 1 - STRONG,
        evidence=_pictures(measured, labels, data, c, column),
        values=numbers,
    )


def _pictures(
    measured: Properties, labels: NDArray[np.int64], data: Samples, c: int, column: int
) -> tuple[Evidence, ...]:
    """Shows pictures of the class in its middle, and of the others in theirs, by the property."""
    rows = []
    for mask in (labels == c, labels != c):
        members = np.flatnonzero(mask)
        order = members[np.argsort(measured.values[members, column], kind="stable")]
        middle = order[max(0, len(order) // 2 - 2) :][:4]
        rows.append([data[measured.rows[int(i)]].image for i in middle])
    caption: Text = {
        "en": "Above: pictures of the class with its median; below: of the others with theirs.",
        "ja": "上: クラスの中央値付近の画像。下: 他のクラスの中央値付近の画像。",
    }
    return (Evidence(beside(rows), caption),)


@question("properties", needs=["labels"])
def properties(collected: Collected) -> tuple[Finding, ...]:
    """Asks whether one property of the pictures alone tells a class from all others."""
    settings, measured = collected.settings, Properties.of(collected.data)
    return property_findings(
        measured,
        collected.true_labels.numpy()[list(measured.rows)],
        collected.classes,
        collected.data,
        alpha=settings.alpha,
        resamples=settings.resamples,
        seed=collected.random_seed("properties"),
    )

"""The question "background": does the decision rest on what is around the object?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from konkyo.evaluation.diagnose.chance import interval_of_mean, p_values
from konkyo.evaluation.diagnose.changed import Probabilities, batched, images_of_one_size, pictured
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.evidence import beside
from konkyo.evaluation.diagnose.findings import NOTHING_TO_DO, Evidence, Finding, Severity, Text

MUCH, SOME = 0.15, 0.05
"""From these falls of P(label) on a finding is high and medium."""
ABOVE_CHANCE = 0.10
"""From this accuracy above that of permuted labels on, the background alone tells the class."""
_LEAST, _CLASSES = 6, 8
_THINNEST = 0.1
"""The least share of the side that a strip of background is wide, for a picture to be tiled with it."""
_SHOWN = 4
_MOST, _MASKS = 32, 512
"""Images that are used, and that are looked at for masks, at most."""
_STATISTIC = "fall of P(label) on a background of another class, less the fall on one of its own class"


def tiled_background(image: Tensor, mask: Tensor) -> Tensor | None:
    """Returns the image (C, H, W) without its object: the box around the mask (H, W) is tiled with background.

    The tile is the largest rectangle of the image above, below, left or right of the box, as Only-BG-T of Xiao et al.
    (2021). None: nothing is masked, or no rectangle is a tenth of the side wide.
    """
    rows, columns = (torch.nonzero(mask.any(axis)).flatten() for axis in (1, 0))
    if not len(rows):
        return None
    height, width = mask.shape
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    strips = [image[:, :top], image[:, bottom:], image[:, :, :left], image[:, :, right:]]
    wide = [strip for strip in strips if strip.shape[1] >= _THINNEST * height and strip.shape[2] >= _THINNEST * width]
    if not wide:
        return None
    tile = max(wide, key=lambda strip: strip.shape[1] * strip.shape[2])
    down, across = (math.ceil(size / side) for size, side in zip((height, width), tile.shape[1:], strict=True))
    result = image.clone()
    result[:, top:bottom, left:right] = tile.repeat(1, down, across)[:, : bottom - top, : right - left]
    return result


@dataclass(frozen=True, eq=False)
class BackgroundUse:
    """What other backgrounds do to the probability of the label, for the m images that could be tested."""

    rows: tuple[int, ...]
    """Their indices."""
    labels: NDArray[np.int64]
    """(m,)"""
    whole: NDArray[np.float64]
    """(m,) P(label) of the image."""
    swapped: NDArray[np.float64]
    """(m, m) P(label) of object i on the background of image j; NaN on the diagonal."""
    changed: NDArray[np.bool_]
    """(m, m) whether the decision is then another than on the image itself."""
    alone: NDArray[np.int64]
    """(m,) what is decided of the background alone."""
    triples: tuple[Tensor, ...]
    """Of the first images: image, object on a background of another class, background alone, (3, C, H, W) each."""
    cost: int

    @property
    def same(self) -> NDArray[np.bool_]:
        """Returns (m, m) whether object and background are of different images of one class."""
        return np.asarray((self.labels[:, None] == self.labels) & ~np.eye(len(self.labels), dtype=bool))

    @property
    def other(self) -> NDArray[np.bool_]:
        """Returns (m, m) whether object and background are of different classes."""
        return np.asarray(self.labels[:, None] != self.labels)


def background_use(
    probabilities: Probabilities,
    images: Tensor,
    masks: Tensor,
    labels: Tensor,
    *,
    most: int = _MOST,
    seed: int = 0,
    batch: int = 32,
) -> BackgroundUse:
    """Puts every image's object on the background of every other image, and looks at the backgrounds alone.

    images (N, C, H, W) prepared, masks (N, H, W) bool of the objects, labels (N,). Backgrounds of another class
    (Mixed-Rand of Xiao et al., 2021) are compared with those of other images of the same class (Mixed-Same), which have
    the same seams. At most `most` images are used, of 8 classes at most that have two images or more; images whose
    object leaves no background to tile with are left out. most^2 images are run forward.
    """
    tiled = {i: t for i in range(len(images)) if (t := tiled_background(images[i], masks[i])) is not None}
    rows = _chosen({i: int(labels[i]) for i in tiled}, most, seed)
    label = torch.tensor([int(labels[i]) for i in rows], dtype=torch.int64)
    if not rows:
        none = np.zeros(0)
        square = np.zeros((0, 0))
        return BackgroundUse((), none.astype(int), none, square, square.astype(bool), none.astype(int), (), 0)
    backgrounds = torch.stack([tiled[row] for row in rows])
    whole, alone = (batched(probabilities, part, batch).double().cpu() for part in (images[rows], backgrounds))
    swapped, changed = np.full((len(rows), len(rows)), np.nan), np.zeros((len(rows), len(rows)), bool)
    for k, row in enumerate(rows):
        mixed = batched(probabilities, torch.where(masks[row], images[row], backgrounds), batch).double().cpu()
        swapped[k] = mixed[:, label[k]].numpy()
        changed[k] = (mixed.argmax(1) != whole[k].argmax()).numpy()
    np.fill_diagonal(swapped, np.nan)
    shown = []
    for k, row in list(enumerate(rows))[:_SHOWN]:
        j = next((j for j in [*range(k, len(rows)), *range(k)] if label[j] != label[k]), k)
        shown.append(torch.stack([images[row], torch.where(masks[row], images[row], backgrounds[j]), backgrounds[k]]))
    return BackgroundUse(
        tuple(rows),
        label.numpy(),
        whole.gather(1, label[:, None])[:, 0].numpy(),
        swapped,
        changed,
        alone.argmax(1).numpy(),
        tuple(shown),
        len(rows) * (len(rows) + 2),
    )


def _chosen(labels: Mapping[int, int], most: int, seed: int) -> list[int]:
    """Draws so many images at most, by turns of up to 8 classes that have two images."""
    order = [list(labels)[i] for i in np.random.default_rng(seed).permutation(len(labels))]
    classes: dict[int, list[int]] = {}
    for image in order:
        classes.setdefault(labels[image], []).append(image)
    several = sorted((c for c in classes if len(classes[c]) > 1), key=lambda c: (-len(classes[c]), c))[:_CLASSES]
    turns = [image for turn in zip_longest(*(classes[c] for c in several)) for image in turn if image is not None]
    return sorted(turns[:most])


def background_gap(use: BackgroundUse, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float, float, float]:
    """Returns by how much P(label) is lower on backgrounds of other classes, its 95 % interval, and its p-value.

    For the p-value the classes of the backgrounds are permuted, all objects staying as they are: a background serves
    many objects, so that these are no independent tests. For the interval images are resampled, as objects and as
    backgrounds.
    """
    values = use.swapped - np.nanmean(use.swapped, 1, keepdims=True)
    generator, m = np.random.default_rng(seed), len(use.labels)
    apart = ~np.eye(m, dtype=bool)

    def gap(of: NDArray[np.float64], objects: NDArray[np.int64], backgrounds: NDArray[np.int64]) -> float:
        same = objects[:, None] == backgrounds
        known = ~np.isnan(of)
        if not (same & known).any() or not (~same & known).any():
            return math.nan
        return float(of[same & known].mean() - of[~same & known].mean())

    actual = gap(values, use.labels, use.labels)
    by_chance = np.array([gap(values, use.labels, generator.permutation(use.labels)) for _ in range(resamples)])
    again = []
    for _ in range(resamples):
        rows = generator.integers(m, size=m)
        part = np.where(apart[np.ix_(rows, rows)], values[np.ix_(rows, rows)], np.nan)
        again.append(gap(part, use.labels[rows], use.labels[rows]))
    low, high = np.nanpercentile(again, (2.5, 97.5)) if np.isfinite(again).any() else (math.nan, math.nan)
    return actual, float(low), float(high), float(p_values(by_chance, actual))


def background_findings(
    use: BackgroundUse,
    pictures: Sequence[Sequence[Image.Image]] = (),
    *,
    alpha: float = 0.01,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Returns what the swap of backgrounds says, and what the background alone tells; pictures are the triples'."""
    if len(use.rows) < _LEAST or not use.other.any():
        return (_untested(len(use.rows)),)
    evidence = (
        (
            Evidence(
                beside(pictures),
                {
                    "en": "Picture; its object on a background of another class; its background alone.",
                    "ja": "画像、対象を別のクラスの背景に置いたもの、背景だけ。",
                },
            ),
        )
        if pictures
        else ()
    )
    return (
        _swap_finding(use, evidence, alpha, resamples, seed),
        _alone_finding(use, evidence, alpha, resamples, seed),
    )


def _swap_finding(
    use: BackgroundUse, evidence: tuple[Evidence, ...], alpha: float, resamples: int, seed: int
) -> Finding:
    fall, low, high, p = background_gap(use, resamples=resamples, seed=seed)
    n, changed, changed_own = len(use.rows), float(use.changed[use.other].mean()), float(use.changed[use.same].mean())
    change = round(-fall, 2) + 0.0  # not -0.00
    severity: Severity = "ok"
    if p <= alpha and fall >= SOME:
        severity = "high" if fall >= MUCH else "medium"
    reach = max(SOME, fall + (high - low) / 2)
    ok = severity == "ok"
    return Finding(
        "background",
        severity,
        "",
        {
            "en": f"On a background of another class P(label) is {change:+.2f} beside that on one of its own class; "
            f"{changed:.0%} of decisions change ({changed_own:.0%} on its own class's)."
            + (f" A fall of about {reach:.2f} would have been named." if ok else ""),
            "ja": f"別のクラスの背景にすると、同じクラスの背景と比べた正解の確率の変化は {change:+.2f} です。"
            f"判断の {changed:.0%} が変わります（同じクラスの背景では {changed_own:.0%}）。"
            + (f"約 {reach:.2f} の低下なら報告されました。" if ok else ""),
        },
        NOTHING_TO_DO
        if ok
        else {
            "en": "Look at the triples. If the object should decide, train with swapped backgrounds, or gather "
            "pictures of each class in several places.",
            "ja": "3 枚組を見てください。対象だけで判断すべきなら、背景を入れ替えて学習するか、"
            "各クラスの画像をさまざまな場所で集めてください。",
        },
        _STATISTIC,
        fall,
        low,
        high,
        p,
        p,
        n,
        MUCH if severity == "high" else SOME,
        use.cost,
        evidence,
        {
            "P(label)": float(use.whole.mean()),
            "P(label), background of its own class": float(use.swapped[use.same].mean()),
            "P(label), background of another class": float(use.swapped[use.other].mean()),
            "decisions changed": changed,
            "decisions changed, own class": changed_own,
        },
    )


def _alone_finding(
    use: BackgroundUse, evidence: tuple[Evidence, ...], alpha: float, resamples: int, seed: int
) -> Finding:
    generator, n = np.random.default_rng(seed), len(use.labels)
    accuracy = float((use.alone == use.labels).mean())
    by_chance = np.array([(use.alone == generator.permutation(use.labels)).mean() for _ in range(resamples)])
    p = float(p_values(by_chance, accuracy))
    chance = float(by_chance.mean())
    used = p <= alpha and accuracy - chance >= ABOVE_CHANCE
    low, high = interval_of_mean((use.alone == use.labels).astype(np.float64), resamples, seed)
    reach = max(chance + ABOVE_CHANCE, float(np.quantile(by_chance, 1 - alpha)))
    more = ("", "") if used else (
        f" From {reach:.0%} on it would have been named.", f"{reach:.0%} 以上なら報告されました。",
    )  # fmt: skip
    return Finding(
        "background",
        "low" if used else "ok",
        "background alone",
        {
            "en": f"The background alone is decided rightly in {accuracy:.0%} of {n} images, "
            f"{chance:.0%} by chance.{more[0]}",
            "ja": f"背景だけで {n} 枚中 {accuracy:.0%} が正しく判断されます（偶然なら {chance:.0%}）。{more[1]}",
        },
        {
            "en": "The background tells the class. This is no fault by itself: the swap says whether the decision "
            "rests on it when the object is there.",
            "ja": "背景からクラスが分かります。それだけでは欠陥ではありません。"
            "対象があるときに背景に頼るかは、入れ替えの結果を見てください。",
        }
        if used
        else NOTHING_TO_DO,
        "accuracy of the background alone",
        accuracy,
        low,
        high,
        p,
        p,
        n,
        chance + ABOVE_CHANCE,
        use.cost,
        evidence,
        {"by chance": chance},
    )


def _untested(n: int) -> Finding:
    return Finding(
        "background",
        "unknown",
        "",
        {
            "en": f"Background: {n} images with masks and a partner of their class are too few; {_LEAST} are needed.",
            "ja": f"背景: マスクと同じクラスの相手がある画像が {n} 枚では足りません。{_LEAST} 枚必要です。",
        },
        {"en": "Draw more masks.", "ja": "マスクを増やしてください。"},
        _STATISTIC,
        math.nan,
        n=n,
    )


def no_masks(evidence: tuple[Evidence, ...], n: int, *, labelled: bool) -> Finding:
    """Returns the finding of data without masks, or without labels: nothing is claimed."""
    lacks = ("No masks", "マスクがない") if labelled else ("No labels", "ラベルがない")
    return Finding(
        "background",
        "unknown",
        "",
        {
            "en": f"{lacks[0]}: not tested. The picture shows what the network's strongest pattern lies on; it proves "
            "nothing.",
            "ja": f"{lacks[1]}ため検査していません。画像はネットワークの最も強い反応の位置を示すだけで、"
            "何も証明しません。",
        },
        {
            "en": "Give labels, and outlines of the objects: folder:DIR,masks=DIR. A few dozen are enough.",
            "ja": "ラベルと対象の輪郭を与えてください: folder:DIR,masks=DIR。数十枚で足ります。",
        },
        _STATISTIC,
        math.nan,
        n=n,
        evidence=evidence,
    )


def largest_component(map_: Tensor, threshold: float = 0.5) -> NDArray[np.bool_]:
    """Returns the largest connected part (h, w) of a map (h, w), scaled to [0, 1], that is above a threshold."""
    from scipy.ndimage import label

    values = map_.double().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    parts, count = label((values - low) / (high - low) > threshold if high > low else np.zeros_like(values, bool))
    if not count:
        return np.zeros(values.shape, bool)
    return np.asarray(parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()))


def _forwards(collected: Collected) -> int:
    m = min(len(collected), _MOST)
    return m * (m + 2) if collected.has_masks and collected.labels is not None else 0


@question("background", forwards=_forwards)
def background(collected: Collected) -> tuple[Finding, ...]:
    """Swaps the backgrounds of images with masks and labels; of others it shows a picture and claims nothing."""
    settings = collected.settings
    if not collected.has_masks or collected.labels is None:
        return (no_masks(_strongest(collected), len(collected), labelled=collected.labels is not None),)
    among = images_of_one_size(collected, _MASKS, "background")
    masks = {i: mask for i in among if (mask := collected.mask(i)) is not None}
    if not masks:
        return (_untested(0),)
    seed, indices = collected.random_seed("background"), list(masks)
    use = background_use(
        collected.probabilities_of,
        collected.images(indices).cpu(),
        torch.stack(list(masks.values())),
        collected.labels[indices],
        seed=seed,
        batch=settings.batch,
    )
    pictures = [pictured(collected, triple) for triple in use.triples]
    return background_findings(use, pictures, alpha=settings.alpha, resamples=settings.resamples, seed=seed)


def _strongest(collected: Collected) -> tuple[Evidence, ...]:
    """Shows the largest part of Eigen-CAM above half of its range, in four pictures."""
    rows = []
    for index in range(min(_SHOWN, len(collected))):
        picture = collected.thumbnail(index)
        part = Image.fromarray(largest_component(collected.eigen[index]).astype(np.uint8) * 255)
        inside = part.resize(picture.size, Image.Resampling.NEAREST)
        rows.append([picture, Image.composite(picture, Image.new("RGB", picture.size, "#909090"), inside)])
    sheet = beside([[image for row in rows[k : k + 2] for image in row] for k in range(0, len(rows), 2)])
    caption: Text = {
        "en": "Pictures, and the largest part of their Eigen-CAM above half of its range.",
        "ja": "画像と、Eigen-CAM が範囲の半分を超える最大の部分。",
    }
    return (Evidence(sheet, caption),)

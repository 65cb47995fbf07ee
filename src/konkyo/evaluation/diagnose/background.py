"""The question "background": does the decision rest on what is around the object?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from konkyo.evaluation.diagnose.border import Probabilities, batched
from konkyo.evaluation.diagnose.chance import interval_of_mean, sign_flips
from konkyo.evaluation.diagnose.evidence import beside
from konkyo.evaluation.diagnose.findings import Evidence, Finding, Severity

MUCH, SOME = 0.15, 0.05
"""From these falls of P(label) on a finding is high and medium."""
ABOVE_CHANCE = 0.10
"""From this accuracy above that of permuted labels on, the background alone tells the class."""
_LEAST = 6
_THINNEST = 0.1
"""The least share of the side that a strip of background is wide, for a picture to be tiled with it."""
_SHOWN = 4
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
    whole: NDArray[np.float64]
    """(m,) P(label) of the image."""
    own_class: NDArray[np.float64]
    """(m,) on the background of another image of its class; NaN where there is none."""
    other_class: NDArray[np.float64]
    """(m,) on the background of an image of another class."""
    changed: float
    """The share of decisions that change on the background of another class."""
    changed_own: float
    """The same on that of its own class."""
    alone: NDArray[np.int64]
    """(m,) what is decided of the background alone."""
    labels: NDArray[np.int64]
    """(m,)"""
    triples: tuple[Tensor, ...]
    """Of the first images: image, on a background of another class, background alone, (3, C, H, W) each."""
    cost: int


def background_use(
    probabilities: Probabilities, images: Tensor, masks: Tensor, labels: Tensor, *, seed: int = 0, batch: int = 32
) -> BackgroundUse:
    """Puts every image's object on other backgrounds, and looks at the backgrounds alone.

    images (N, C, H, W) prepared, masks (N, H, W) bool of the objects, labels (N,). The background of an image of
    another class (Mixed-Rand of Xiao et al., 2021) is compared with that of another image of the same class
    (Mixed-Same), which has the same seams. Images are left out whose object leaves no background to tile with.
    """
    tiled = {i: t for i in range(len(images)) if (t := tiled_background(images[i], masks[i])) is not None}
    rows = list(tiled)
    classes = labels.tolist()
    generator = np.random.default_rng(seed)
    partners, own_partners = list[int | None](), list[int | None]()
    for row in rows:
        partners.append(_drawn(generator, [j for j in rows if classes[j] != classes[row]]))
        own_partners.append(_drawn(generator, [j for j in rows if classes[j] == classes[row] and j != row]))
    kept = [k for k, partner in enumerate(partners) if partner is not None]
    rows = [rows[k] for k in kept]
    if not rows:
        none = np.zeros(0)
        return BackgroundUse((), none, none, none, math.nan, math.nan, none.astype(int), none.astype(int), (), 0)

    def swapped(partner_of: Sequence[int | None]) -> Tensor:
        pairs = [(row, partner_of[k]) for row, k in zip(rows, kept, strict=True)]
        return torch.stack(
            [torch.where(masks[row], images[row], images[row] if j is None else tiled[j]) for row, j in pairs]
        )

    sets = [images[rows], swapped(own_partners), swapped(partners), torch.stack([tiled[row] for row in rows])]
    whole, same, other, alone = (batched(probabilities, part, batch).double().cpu() for part in sets)
    label = labels.cpu()[rows]
    decided = whole.argmax(1)
    no_partner = np.array([own_partners[k] is None for k in kept])
    own_class = _of_label(same, label)
    own_class[no_partner] = np.nan
    changed_own = (same.argmax(1) != decided).numpy()[~no_partner]
    return BackgroundUse(
        tuple(rows),
        _of_label(whole, label),
        own_class,
        _of_label(other, label),
        float((other.argmax(1) != decided).double().mean()),
        float(changed_own.mean()) if len(changed_own) else math.nan,
        alone.argmax(1).numpy(),
        label.numpy(),
        tuple(torch.stack([sets[0][k], sets[2][k], sets[3][k]]) for k in range(min(_SHOWN, len(rows)))),
        4 * len(rows),
    )


def _drawn(generator: np.random.Generator, among: Sequence[int]) -> int | None:
    return int(among[int(generator.integers(len(among)))]) if among else None


def _of_label(probabilities: Tensor, labels: Tensor) -> NDArray[np.float64]:
    return np.array(probabilities.gather(1, labels[:, None])[:, 0], dtype=np.float64)


def background_findings(
    use: BackgroundUse,
    pictures: Sequence[Sequence[Image.Image]] = (),
    *,
    alpha: float = 0.01,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Returns what the swap of backgrounds says, and what the background alone tells; pictures are the triples'."""
    paired = ~np.isnan(use.own_class)
    if int(paired.sum()) < _LEAST:
        return (_untested(int(paired.sum())),)
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
        _swap_finding(use, paired, evidence, alpha, resamples, seed),
        _alone_finding(use, evidence, alpha, resamples, seed),
    )


def _swap_finding(
    use: BackgroundUse,
    paired: NDArray[np.bool_],
    evidence: tuple[Evidence, ...],
    alpha: float,
    resamples: int,
    seed: int,
) -> Finding:
    gap = (use.own_class - use.other_class)[paired]
    fall, n = float(gap.mean()), len(gap)
    low, high = interval_of_mean(gap, resamples, seed)
    p = float(sign_flips(gap[:, None], resamples, seed)[0][0])
    severity: Severity = "ok"
    if p <= alpha and fall >= SOME:
        severity = "high" if fall >= MUCH else "medium"
    reach = 2.6 * float(gap.std(ddof=1)) / math.sqrt(n) + SOME
    ok = severity == "ok"
    return Finding(
        "background",
        severity,
        "",
        {
            "en": f"On a background of another class P(label) falls by {fall:.2f} more than on one of its own class; "
            f"{use.changed:.0%} of decisions change ({use.changed_own:.0%} on its own class's)."
            + (f" A fall of about {reach:.2f} would have been named." if ok else ""),
            "ja": f"別のクラスの背景では、同じクラスの背景よりも正解の確率が {fall:.2f} 多く下がります。"
            f"判断の {use.changed:.0%} が変わります（同じクラスの背景では {use.changed_own:.0%}）。"
            + (f"約 {reach:.2f} の低下なら報告されました。" if ok else ""),
        },
        {"en": "Nothing to do.", "ja": "必要な作業はありません。"}
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
            "P(label), background of its own class": float(use.own_class[paired].mean()),
            "P(label), background of another class": float(use.other_class.mean()),
            "decisions changed": use.changed,
            "decisions changed, own class": use.changed_own,
        },
    )


def _alone_finding(
    use: BackgroundUse, evidence: tuple[Evidence, ...], alpha: float, resamples: int, seed: int
) -> Finding:
    generator, n = np.random.default_rng(seed), len(use.labels)
    accuracy = float((use.alone == use.labels).mean())
    by_chance = np.array([(use.alone == generator.permutation(use.labels)).mean() for _ in range(resamples)])
    p = float((1 + (by_chance >= accuracy - 1e-12).sum()) / (1 + resamples))
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
        else {"en": "Nothing to do.", "ja": "必要な作業はありません。"},
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


def no_masks(evidence: tuple[Evidence, ...], n: int) -> Finding:
    """Returns the finding of data without masks: nothing is claimed."""
    return Finding(
        "background",
        "unknown",
        "",
        {
            "en": "No masks: not tested. The picture shows what the network's strongest pattern lies on; it proves "
            "nothing.",
            "ja": "マスクがないため検査していません。画像はネットワークの最も強い反応の位置を示すだけで、"
            "何も証明しません。",
        },
        {
            "en": "Give outlines of the objects: folder:DIR,masks=DIR. A few dozen are enough.",
            "ja": "対象の輪郭を与えてください: folder:DIR,masks=DIR。数十枚で足ります。",
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

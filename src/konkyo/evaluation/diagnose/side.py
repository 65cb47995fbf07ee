"""The question "side": does the model read a mark in a corner, or tell left from right?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from konkyo.evaluation.diagnose.chance import interval_of_mean, sign_flips
from konkyo.evaluation.diagnose.changed import Probabilities, batched, images_of_one_size, pictured
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.evidence import beside
from konkyo.evaluation.diagnose.findings import NOTHING_TO_DO, Evidence, Finding, Severity, Text

CORNERS = ("upper left", "upper right", "lower left", "lower right")
_JAPANESE = ("左上", "右上", "左下", "右下")
SHARE = 0.1
"""The side of a corner's square, as a share of the picture's."""
MOVED = 0.03
"""The least mean change of P, beyond that of other windows, of a finding."""
MIRRORED = 0.05
"""The least mean fall of P(label) in the mirror image, of a finding."""
FLIPPED = 0.5
"""The share of decisions that change in the mirror image, more of which is a finding whatever the probabilities do."""
_LEAST, _MOST = 6, 128
_STATISTIC = "change of P when a corner is mirrored, less that of a window elsewhere"


@dataclass(frozen=True, eq=False)
class SideUse:
    """What mirroring does to n images: to the whole of them, and to a square in a corner only."""

    corners: NDArray[np.float64]
    """(n, 4) the absolute change of P of the decision when a corner is mirrored."""
    elsewhere: NDArray[np.float64]
    """(n, 4) the same of a square inside the picture, one for each corner."""
    flips: NDArray[np.float64]
    """(4,) the share of decisions that change by a corner."""
    flips_elsewhere: float
    mirror: NDArray[np.float64]
    """(n,) the fall of P(label), or of P of the decision without labels, in the mirror image."""
    mirror_flips: float
    labelled: bool
    shown: tuple[Tensor, ...]
    """The three images that change most, and with their corner mirrored, (2, C, H, W) each."""
    cost: int


def side_use(
    probabilities: Probabilities, images: Tensor, labels: Tensor | None = None, *, seed: int = 0, batch: int = 32
) -> SideUse:
    """Mirrors images (N, C, H, W), and then only a square of a tenth of their side in each of four corners.

    Every corner is compared with a square of the same size inside the picture, drawn by the seed, that is mirrored too.
    labels (N,).
    """
    n, (height, width) = len(images), images.shape[-2:]
    down, across = max(2, round(SHARE * height)), max(2, round(SHARE * width))
    usual = batched(probabilities, images, batch).double().cpu()
    decided = usual.argmax(1)
    aims = decided if labels is None else labels.cpu()
    generator = np.random.default_rng(seed)

    def after(changed: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        values = batched(probabilities, changed, batch).double().cpu()
        change = (values - usual).gather(1, decided[:, None])[:, 0].abs().numpy()
        return change, (values.argmax(1) != decided).numpy()

    corners, elsewhere, flips, flips_elsewhere = np.zeros((n, 4)), np.zeros((n, 4)), np.zeros(4), np.zeros(4)
    for k, (top, left) in enumerate(_corners(height, width, down, across)):
        corners[:, k], flipped = after(_mirrored_at(images, [(top, left)] * n, down, across))
        flips[k] = flipped.mean()
        places = [_inside(generator, height, width, down, across) for _ in range(n)]
        elsewhere[:, k], flipped = after(_mirrored_at(images, places, down, across))
        flips_elsewhere[k] = flipped.mean()
    mirrored = batched(probabilities, images.flip(-1), batch).double().cpu()
    fall = (usual - mirrored).gather(1, aims[:, None])[:, 0].numpy()
    strongest = int((corners - elsewhere).mean(0).argmax()) if n else 0
    place = _corners(height, width, down, across)[strongest]
    shown = [
        torch.stack([images[i], _mirrored_at(images[i : i + 1], [place], down, across)[0]])
        for i in np.argsort(-corners[:, strongest], kind="stable")[:3].tolist()
    ]
    changed = float((mirrored.argmax(1) != decided).double().mean()) if n else math.nan
    return SideUse(
        corners, elsewhere, flips, float(flips_elsewhere.mean()), fall, changed,
        labels is not None, tuple(shown), 10 * n,
    )  # fmt: skip


def _corners(height: int, width: int, down: int, across: int) -> tuple[tuple[int, int], ...]:
    """Returns the upper left cells of the squares in the four corners, as CORNERS."""
    return (0, 0), (0, width - across), (height - down, 0), (height - down, width - across)


def _inside(generator: np.random.Generator, height: int, width: int, down: int, across: int) -> tuple[int, int]:
    """Draws the upper left cell of a square that meets no corner's square."""
    while True:
        top, left = int(generator.integers(height - down + 1)), int(generator.integers(width - across + 1))
        aside = top < down or top > height - 2 * down, left < across or left > width - 2 * across
        if not all(aside) or min(height // down, width // across) < 3:
            return top, left


def _mirrored_at(images: Tensor, places: Sequence[tuple[int, int]], down: int, across: int) -> Tensor:
    """Returns copies of images (N, C, H, W) with a window mirrored, whose upper left cell is (row, column)."""
    result = images.clone()
    for image, (top, left) in zip(result, places, strict=True):
        window = image[:, top : top + down, left : left + across]
        window.copy_(window.flip(-1))
    return result


def side_findings(
    use: SideUse,
    pictures: Sequence[Sequence[Image.Image]] = (),
    *,
    alpha: float = 0.01,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Returns what the corners say and what the mirror image says; the pictures are those of `SideUse.shown`."""
    n = len(use.corners)
    if n < _LEAST:
        return (_too_few(n),)
    return _corner_finding(use, pictures, alpha, resamples, seed), _mirror_finding(use, alpha, resamples, seed)


def _corner_finding(
    use: SideUse, pictures: Sequence[Sequence[Image.Image]], alpha: float, resamples: int, seed: int
) -> Finding:
    differences = use.corners - use.elsewhere
    p, p_all = sign_flips(differences, resamples, seed)
    k = int(differences.mean(0).argmax())
    value, n = float(differences[:, k].mean()), len(differences)
    low, high = interval_of_mean(differences[:, k], resamples, seed)
    severity: Severity = "ok"
    if p_all[k] <= alpha and value >= MOVED:
        severity = "medium" if use.flips[k] >= MOVED else "low"
    reach = MOVED + 3 * float(differences[:, k].std(ddof=1)) / math.sqrt(n)
    if severity == "ok":
        sentence: Text = {
            "en": f"No corner matters more than other places: mirrored, the {CORNERS[k]} one changes "
            f"{use.flips[k]:.0%} of decisions (a window elsewhere {use.flips_elsewhere:.0%}). "
            f"A change of P by about {reach:.2f} more than elsewhere would have been named.",
            "ja": f"他の場所より重要な隅はありません。{_JAPANESE[k]}の隅を反転すると"
            f"判断の {use.flips[k]:.0%} が変わります（他の場所では {use.flips_elsewhere:.0%}）。"
            f"他より約 {reach:.2f} 大きい変化なら報告されました。",
        }
    else:
        sentence = {
            "en": f"Mirroring the {CORNERS[k]} corner changes {use.flips[k]:.0%} of decisions (a window elsewhere "
            f"{use.flips_elsewhere:.0%}), and P by {value:.2f} more: a mark there?",
            "ja": f"{_JAPANESE[k]}の隅を反転すると判断の {use.flips[k]:.0%} が変わります"
            f"（他の場所では {use.flips_elsewhere:.0%}）。確率の変化も {value:.2f} 大きく、目印があるかもしれません。",
        }
    caption: Text = {
        "en": f"Pictures whose P changes most, and with their {CORNERS[k]} corner mirrored.",
        "ja": f"確率の変化が最も大きい画像と、{_JAPANESE[k]}の隅を反転したもの。",
    }
    numbers = {f"changed decisions, {corner}": float(share) for corner, share in zip(CORNERS, use.flips, strict=True)}
    return Finding(
        "side",
        severity,
        "corners",
        sentence,
        NOTHING_TO_DO
        if severity == "ok"
        else {
            "en": "Look at that corner at full size; cover it with `konkyo cover`, and crop or blank marks before "
            "training.",
            "ja": "その隅を原寸で見てください。`konkyo cover` で隠して確かめ、"
            "学習の前に目印を切り取るか消してください。",
        },
        _STATISTIC,
        value,
        low,
        high,
        float(p[k]),
        float(p_all[k]),
        n,
        MOVED,
        use.cost,
        (Evidence(beside(pictures), caption),) if pictures and severity != "ok" else (),
        numbers | {"changed decisions, elsewhere": use.flips_elsewhere},
    )


def _mirror_finding(use: SideUse, alpha: float, resamples: int, seed: int) -> Finding:
    fall, n = float(use.mirror.mean()), len(use.mirror)
    low, high = interval_of_mean(use.mirror, resamples, seed)
    p = float(sign_flips(use.mirror[:, None], resamples, seed)[0][0])
    named = use.labelled and (use.mirror_flips > FLIPPED or (p <= alpha and fall >= MIRRORED))
    what = ("P(label)", "正解の確率") if use.labelled else ("P of the decision", "判断の確率")
    reach = MIRRORED + 2.6 * float(use.mirror.std(ddof=1)) / math.sqrt(n)
    more = (
        (f" A fall of about {reach:.2f} would have been named.", f"約 {reach:.2f} の低下なら報告されました。")
        if use.labelled and not named
        else ("", "")
    )
    return Finding(
        "side",
        ("low" if named else "ok") if use.labelled else "unknown",
        "mirror image",
        {
            "en": f"In the mirror image {use.mirror_flips:.0%} of decisions change, and {what[0]} changes "
            f"by {round(-fall, 2) + 0.0:+.2f}." + more[0],
            "ja": f"左右反転すると判断の {use.mirror_flips:.0%} が変わり、"
            f"{what[1]}の変化は {round(-fall, 2) + 0.0:+.2f} です。" + more[1],
        },
        {
            "en": "The model tells left from right. Of anatomy or text it may; else train with mirrored pictures.",
            "ja": "モデルは左右を区別しています。人体や文字なら当然ですが、"
            "そうでなければ反転画像も学習に加えてください。",
        }
        if named
        else NOTHING_TO_DO,
        f"fall of {what[0]} in the mirror image",
        fall,
        low,
        high,
        p if use.labelled else math.nan,
        p if use.labelled else math.nan,
        n,
        MIRRORED,
        use.cost,
        values={"changed decisions": use.mirror_flips},
    )


def _too_few(n: int) -> Finding:
    return Finding(
        "side",
        "unknown",
        "",
        {
            "en": f"Side: {n} images are too few; {_LEAST} are needed.",
            "ja": f"左右: 画像が {n} 枚では足りません。{_LEAST} 枚必要です。",
        },
        {"en": "Give more images.", "ja": "画像を増やしてください。"},
        _STATISTIC,
        math.nan,
        n=n,
    )


@question("side", forwards=lambda collected: 10 * min(len(collected), _MOST))
def side(collected: Collected) -> tuple[Finding, ...]:
    """Mirrors images and their corners."""
    settings, seed = collected.settings, collected.random_seed("side")
    indices = images_of_one_size(collected, _MOST, "side")
    labels = None if collected.labels is None else collected.labels[indices]
    images = collected.images(indices).cpu()
    use = side_use(collected.probabilities_of, images, labels, seed=seed, batch=settings.batch)
    pictures = [[image for shown in use.shown for image in pictured(collected, shown)]] if use.shown else []
    return side_findings(use, pictures, alpha=settings.alpha, resamples=settings.resamples, seed=seed)

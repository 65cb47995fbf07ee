"""The question "border": does the model use the zeros that its convolutions see around the picture?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from konkyo.engine.forward import Pass
from konkyo.engine.padding import Border, Padding
from konkyo.engine.session import untouched
from konkyo.errors import silenced
from konkyo.evaluation.diagnose.changed import Probabilities, batched, images_of_one_size
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.findings import NOTHING_TO_DO, Evidence, Finding, Text
from konkyo.utils.statistics import interval_of_share

MANY = 0.5
"""From this share of changed decisions on a finding is "low"; ordinary networks were measured to change 0 to 41 %."""
_MOST = 256
"""Images that are run forward at most."""
_BORDERS: tuple[Border, ...] = ("reflect", "replicate")
_STATISTIC = "share of decisions that change with another padding, the larger of two"


@dataclass(frozen=True)
class BorderUse:
    """What another padding does to the decisions of a network; NaN where it is not known."""

    n: int
    padded: bool
    """Whether the network pads with zeros at all."""
    changed: dict[str, float]
    """The share of changed decisions, by the padding."""
    accuracy: dict[str, float]
    """By the padding, "zeros" being the network as it is."""


def border_use(
    probabilities: Probabilities, images: Tensor, labels: Tensor | None = None, *, batch: int = 32
) -> BorderUse:
    """Compares the decisions of a network with those that it takes with reflected and with repeated borders.

    images (N, C, H, W) prepared, labels (N,). The network itself is not changed: other padding is given to the
    convolutions of a forward (`konkyo.engine.padding`).
    """
    decisions = {"zeros": batched(probabilities, images, batch).argmax(1)}
    padded = False
    for border in _BORDERS:
        with Padding(border) as padding:
            decisions[border] = batched(probabilities, images, batch).argmax(1)
        padded = padded or padding.used > 0
    usual = decisions["zeros"]
    changed: dict[str, float] = {name: float((decisions[name] != usual).float().mean()) for name in _BORDERS}
    accuracy = {name: _accuracy(made, labels) for name, made in decisions.items()}
    return BorderUse(len(images), padded, changed, accuracy)


def _accuracy(decisions: Tensor, labels: Tensor | None) -> float:
    return math.nan if labels is None else float((decisions == labels.to(decisions.device)).float().mean())


def outer_share(maps: Tensor) -> tuple[float, float]:
    """Returns the share of maps (N, h, w) in the outermost cells, the mean over maps, and the share of those cells."""
    positive = maps.clamp(min=0).double()
    outer = torch.ones_like(positive[0], dtype=torch.bool)
    outer[1:-1, 1:-1] = False
    sums = positive.sum((1, 2))
    shares = (positive * outer).sum((1, 2))[sums > 0] / sums[sums > 0]
    return (float(shares.mean()) if len(shares) else math.nan), float(outer.double().mean())


def border_to_centre(activity: Tensor) -> float:
    """Returns the activity (h, w) of a uniform picture in the outermost cells, divided by that of the middle ones.

    The middle is the cells at least a quarter of the side away from the border. 1: the border makes no difference.
    """
    height, width = activity.shape
    outer = torch.ones_like(activity, dtype=torch.bool)
    outer[1:-1, 1:-1] = False
    down, across = max(1, height // 4), max(1, width // 4)
    middle = activity[down : height - down, across : width - across]
    if not middle.numel() or not outer.any() or float(middle.mean()) == 0:
        return math.nan
    return float(activity[outer].mean() / middle.mean())


def border_finding(use: BorderUse, maps: Tensor | None = None, activity: Tensor | None = None) -> Finding:
    """Returns what the comparison says, with the share of maps at the border and the activity on a uniform picture.

    maps (N, h, w); activity (h, w), the mean absolute activation of the channels.
    """
    if not use.padded:
        return _not_applicable(use.n)
    share = max(use.changed.values())
    low, high = interval_of_share(round(share * use.n), use.n)
    values = {f"changed, {name}": value for name, value in use.changed.items()}
    values |= {f"accuracy, {name}": value for name, value in use.accuracy.items() if not math.isnan(value)}
    if maps is not None:
        values["share of maps in the outer cells"], values["share of the area"] = outer_share(maps)
    if activity is not None:
        values["border to centre"] = border_to_centre(activity)
    many = share > MANY
    return Finding(
        "border",
        "low" if many else "ok",
        "",
        _sentence(share, values, many=many),
        {
            "en": "Pad the pictures before they go in, or train with another padding, and compare the accuracy. "
            "Decisions that change can also be unsure ones.",
            "ja": "画像をあらかじめ広げて入力するか、別のパディングで学習して正解率を比べてください。"
            "変わった判断は、もともと自信のない判断かもしれません。",
        }
        if many
        else NOTHING_TO_DO,
        _STATISTIC,
        share,
        low,
        high,
        n=use.n,
        threshold=MANY,
        cost=3 * use.n,
        evidence=() if activity is None else (_activity_picture(activity),),
        values=values,
    )


def _sentence(share: float, values: dict[str, float], *, many: bool) -> Text:
    ratio = values.get("border to centre", math.nan)
    more = ("", "")
    if not math.isnan(ratio):
        more = (
            f" On a uniform picture the border cells are {ratio:.2f} times as active as the middle.",
            f"一様な画像では、縁のセルの活動は中央の {ratio:.2f} 倍です。",
        )
    usual = (
        ("more than ordinary networks, 0 to 41 %", "通常のネットワークの 0〜41 % より多い")
        if many
        else ("ordinary networks: 0 to 41 %", "通常のネットワークでは 0〜41 %")
    )
    no_power = (
        " No network that misuses its border was at hand, so this test has shown no power.",
        "縁を誤用するネットワークでの検証はないため、検出力は示されていません。",
    )
    return {
        "en": f"Padding: {share:.0%} of decisions change with another padding ({usual[0]}).{more[0]}{no_power[0]}",
        "ja": f"パディングを変えると判断の {share:.0%} が変わります（{usual[1]}）。{more[1]}{no_power[1]}",
    }


def _not_applicable(n: int) -> Finding:
    return Finding(
        "border",
        "unknown",
        "",
        {
            "en": "Border: not applicable, since no convolution of this network pads its grid with zeros.",
            "ja": "縁: ゼロでパディングする畳み込みがないため、対象外です。",
        },
        NOTHING_TO_DO,
        _STATISTIC,
        math.nan,
        n=n,
    )


def _activity_picture(activity: Tensor) -> Evidence:
    values: NDArray[np.float64] = activity.double().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    grey = (values - low) / (high - low) * 255 if high > low else np.full_like(values, 128)
    picture = Image.fromarray(grey.round().astype(np.uint8)).resize((160, 160), Image.Resampling.NEAREST)
    return Evidence(
        picture.convert("RGB"),
        {
            "en": f"Activity of the layer on a uniform grey picture, {low:.2g} (black) to {high:.2g} (white).",
            "ja": f"一様な灰色の画像での層の活動。{low:.2g}（黒）〜 {high:.2g}（白）。",
        },
    )


@question("border", forwards=lambda collected: 3 * min(len(collected), _MOST))
def border(collected: Collected) -> tuple[Finding, ...]:
    """Compares decisions under three paddings, and looks at maps and activity at the border."""
    indices = images_of_one_size(collected, _MOST, "border")
    labels = None if collected.labels is None else collected.labels[indices]
    use = border_use(collected.probabilities_of, collected.images(indices), labels, batch=collected.settings.batch)
    return (border_finding(use, collected.maps, _grey_activity(collected, indices[0]) if use.padded else None),)


def _grey_activity(collected: Collected, index: int) -> Tensor | None:
    """Returns the mean absolute activation (h, w) of the explained layer on a grey picture; None: no 2-D grid."""
    model, where = collected.model, collected.settings.layer
    grey = collected.images([index]).mul(0)
    first = where[0] if isinstance(where, Sequence) and not isinstance(where, str) else where
    session = untouched(model.module, collected.settings.seed)
    with silenced(), session, session:  # twice: see `Session`
        layer = model.cut(first, tuple(grey.shape[1:]))[0]
        made = Pass(model, grey, [layer])
        activity = made.activations(made.levels(layer)[0])[0].abs().mean(0).cpu()
    return activity if activity.ndim == 2 else None

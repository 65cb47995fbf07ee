"""The question "method": do the maps themselves depend on what was learnt, on the class, and not on noise?"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.evaluation.diagnose.changed import images_of_one_size
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.findings import Finding, Severity, Text
from konkyo.evaluation.sanity import ALIKE, Sanity, random_class, randomisation, stability
from konkyo.explanation.explain import Which
from konkyo.models import Model

STEADY = 0.5
"""Below this correlation of maps of one image with and without noise, they are called unsteady."""
_NOISES, _STEPS, _OTHERS = 4, 3, 3
_MOST = 8
_NOTHING: Text = {"en": "Nothing to do.", "ja": "必要な作業はありません。"}
_OTHER_METHOD: Text = {
    "en": "Do not read maps of this method as reasons; take another method, or another layer.",
    "ja": "この手法の図を判断の理由として読まず、別の手法か層を使ってください。",
}


def sanity_findings(
    model: Model, images: Tensor, which: Which = "grad_cam", *, seed: int = 0, **settings: Any
) -> tuple[Finding, ...]:
    """Returns what randomised weights, other classes and noise do to the maps of a few images (N, C, H, W).

    `settings` are those of `explain`. A test that cannot be made of this model is "unknown", with the reason.
    """
    n = len(images)
    shared = {"seed": seed} | settings
    return (
        _finding("weights", lambda: _learnt(randomisation(model, images, which, steps=_STEPS, **shared), n), n),
        _finding("class", lambda: _of_class(random_class(model, images, which, others=_OTHERS, **shared), n), n),
        _finding("noise", lambda: _steady(model, images, which, shared), n),
    )


def _finding(test: str, run: Any, n: int) -> Finding:
    try:
        finding: Finding = run()
    except KonkyoError as error:
        return Finding(
            "method",
            "unknown",
            test,
            {
                "en": f"Sanity of the maps ({test}): not tested, since {error}.",
                "ja": f"図の検査（{test}）: 未実施。{error}",
            },
            _NOTHING,
            "rank correlation of maps",
            math.nan,
            n=n,
        )
    return finding


def _learnt(result: Sanity, n: int) -> Finding:
    value = float(result.similarity[-1].nanmean())
    if math.isnan(value):
        raise KonkyoError("all maps of random weights are blank")
    passed = result.passed
    return Finding(
        "method",
        "ok" if passed else "medium",
        "weights",
        {
            "en": f"With random weights the maps {'differ' if passed else 'are much the same'}: rank correlation "
            f"{value:.2f} with those of the trained network (at most {ALIKE:g} is asked for).",
            "ja": f"重みを乱数にすると図は{'変わります' if passed else 'ほとんど変わりません'}: "
            f"元の図との順位相関は {value:.2f} です（{ALIKE:g} 以下が基準）。",
        },
        _NOTHING if passed else _OTHER_METHOD,
        "rank correlation of maps with those of random weights",
        value,
        n=n,
        threshold=ALIKE,
        cost=n * (1 + len(result.steps)),
    )


def _of_class(result: Sanity, n: int) -> Finding:
    value = float(result.similarity.nanmean())
    if math.isnan(value):
        raise KonkyoError("all maps of other classes are blank")
    passed = result.passed
    return Finding(
        "method",
        "ok" if passed else "low",
        "class",
        {
            "en": f"Maps of other classes {'differ' if passed else 'are much the same'}: rank correlation {value:.2f} "
            "with that of the decision.",
            "ja": f"別のクラスの図は{'違います' if passed else 'ほとんど同じです'}: "
            f"判断の図との順位相関は {value:.2f} です。",
        },
        _NOTHING
        if passed
        else {
            "en": "A map says where something is, hardly why it is this class. With one object on a plain ground "
            "that is in order; else look at contrasts of two classes.",
            "ja": "図は対象の位置を示しますが、このクラスである理由はほとんど示しません。"
            "単純な背景に対象が一つなら普通です。そうでなければ 2 クラスの差の図を見てください。",
        },
        "rank correlation of maps with those of other classes",
        value,
        n=n,
        threshold=ALIKE,
        cost=n * (1 + len(result.steps)),
    )


def _steady(model: Model, images: Tensor, method: Which, settings: dict[str, Any]) -> Finding:
    similarity = stability(model, images, method, over="noise", samples=_NOISES, **settings).similarity
    value, n = float(similarity.nanmean()), len(images)
    severity: Severity = "ok" if value >= STEADY else "low"
    return Finding(
        "method",
        severity,
        "noise",
        {
            "en": f"With a little noise in the image the maps {'stay' if severity == 'ok' else 'change much'}: "
            f"correlation {value:.2f} (noise of 5 % of the image's range).",
            "ja": f"画像に少しノイズを加えると図は{'保たれます' if severity == 'ok' else '大きく変わります'}: "
            f"相関 {value:.2f}（画像の範囲の 5 % のノイズ）。",
        },
        _NOTHING
        if severity == "ok"
        else {
            "en": "Average maps over noise (method smooth_grad), and do not read details.",
            "ja": "ノイズで平均した図（smooth_grad）を使い、細部を読まないでください。",
        },
        "correlation of maps of one image with noise",
        value,
        n=n,
        threshold=STEADY,
        cost=n * (1 + _NOISES),
    )


@question("method", forwards=lambda _: _MOST * (3 + _STEPS + _OTHERS + _NOISES))
def method(collected: Collected) -> tuple[Finding, ...]:
    """Tests the method whose maps this diagnosis shows, on a few of the images."""
    settings = collected.settings
    images = collected.images(images_of_one_size(collected, _MOST, "method"))
    return sanity_findings(collected.model, images, settings.method, seed=settings.seed, layer=settings.layer)

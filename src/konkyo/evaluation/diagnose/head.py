"""The question "head": do the last layers make of the features what these allow?"""

from __future__ import annotations

import math

import torch

from konkyo.draw.overlay import overlay
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.evidence import beside
from konkyo.evaluation.diagnose.findings import (
    NOTHING_TO_DO,
    Evidence,
    Finding,
    Severity,
    Text,
    too_few,
    too_few_maps,
    worded,
)
from konkyo.evaluation.diagnose.probe import ridge_probe
from konkyo.evaluation.diagnose.statistics import McNemar, agreement, mcnemar, varying

SOME, MUCH = 0.05, 0.15
"""From these lower bounds on, what the head loses is a medium and a high finding."""
POOR = 0.35
"""Below this agreement the head hardly uses for the label what the backbone puts out: 0.52 is measured with a good
head, 0.23 with half of its rows exchanged, 0.09 with a random one, 0.27 after 3 steps of training."""
_LEAST = 6
_SHOWN = 6
_OF_PROBE = "accuracy of a linear probe on the features minus that of the head"
_OF_MAPS = "correlation of Eigen-CAM and Ablation-CAM of the label, minus that with another image's"


@question("head", needs=("labels",), forwards=lambda collected: len(collected) * 64)
def ask(collected: Collected) -> tuple[Finding, ...]:
    """Returns what a linear probe reaches beyond the head, and whether the label's map follows the features."""
    if len(collected) < _LEAST:
        return (too_few("head", len(collected), _OF_PROBE),)
    findings = []
    if collected.train is not None and collected.train.labels is not None:
        findings.append(_probe_finding(collected, collected.train))
    findings.append(_map_finding(collected))
    return tuple(findings)


def severity_of(test: McNemar, alpha: float) -> Severity:
    """Returns how bad it is that the probe is better: p at most alpha, and the lower bound above a threshold.

    "unknown": the images are too few to exclude a difference that matters, or to find any.
    """
    if test.p > alpha or test.low <= SOME:
        open_ = math.isnan(test.smallest(alpha, SOME)) or (test.difference > SOME and test.high > MUCH)
        return "unknown" if open_ else "ok"
    return "high" if test.low > MUCH else "medium"


def _probe_finding(collected: Collected, train: Collected) -> Finding:
    settings, labels = collected.settings, collected.true_labels
    kinds = collected.probabilities.shape[1]
    probe = ridge_probe(
        train.features, train.true_labels, collected.features, kinds, generator=collected.generator("head")
    )
    right = probe.decisions == labels
    test = mcnemar(right, collected.correct)
    severity = severity_of(test, settings.alpha)
    allowed, reached = float(right.float().mean()), float(collected.correct.float().mean())
    least = test.smallest(settings.alpha, SOME)
    return Finding(
        "head",
        severity,
        "",
        _probe_sentence(severity, {"allowed": allowed, "reached": reached, "least": least, "n": test.n}),
        NOTHING_TO_DO
        if severity == "ok"
        else worded("Give more images.", "画像を増やしてください。")
        if severity == "unknown"
        else worded(
            "Retrain the head (the layers after {layer}) on the training images, and check the order of its classes.",
            "{layer} より後の層（ヘッド）を学習し直し、クラスの順序も確認してください。",
            layer=collected.layer,
        ),
        _OF_PROBE,
        test.difference,
        test.low,
        test.high,
        test.p,
        test.p,
        n=test.n,
        threshold=MUCH if severity == "high" else SOME,
        evidence=_lost(collected, right & ~collected.correct, probe.decisions) if severity != "ok" else (),
        values={
            "accuracy of the probe": allowed,
            "accuracy of the head": reached,
            "only the probe right": float(test.first_only),
            "only the head right": float(test.second_only),
            "penalty": probe.strength,
            "smallest difference found": least,
        },
    )


def _probe_sentence(severity: Severity, numbers: dict[str, float]) -> Text:
    if severity == "ok":
        return worded(
            "The head makes of the features what a linear probe does: {reached:.0%}, the probe {allowed:.0%}. "
            "A probe better by {least:.0%} would have been found.",
            "ヘッドは特徴から線形プローブと同程度の結果を出しています（ヘッド {reached:.0%}、プローブ {allowed:.0%}）。"
            "差が {least:.0%} 以上あれば検出できました。",
            **numbers,
        )
    if severity != "unknown":
        return worded(
            "The features allow {allowed:.0%}, the head reaches {reached:.0%}.",
            "特徴からは {allowed:.0%} が可能ですが、ヘッドは {reached:.0%} しか達していません。",
            **numbers,
        )
    if math.isnan(numbers["least"]):
        return worded(
            "A linear probe reaches {allowed:.0%}, the head {reached:.0%}; {n} images are too few to find any "
            "difference.",
            "線形プローブは {allowed:.0%}、ヘッドは {reached:.0%} ですが、{n} 枚ではどんな差も検出できません。",
            **numbers,
        )
    return worded(
        "A linear probe reaches {allowed:.0%}, the head {reached:.0%}; with {n} images that can be chance. "
        "A difference of {least:.0%} would have been found.",
        "線形プローブは {allowed:.0%}、ヘッドは {reached:.0%} ですが、{n} 枚では偶然の可能性があります。"
        "差が {least:.0%} 以上あれば検出できました。",
        **numbers,
    )


def _lost(collected: Collected, lost: torch.Tensor, decisions: torch.Tensor) -> tuple[Evidence, ...]:
    """Returns pictures that the probe gets right and the head does not."""
    evidence = []
    for index in torch.nonzero(lost)[:_SHOWN, 0].tolist():
        caption = worded(
            "{name}: the probe says {probe}, the head {head}",
            "{name}: プローブは {probe}、ヘッドは {head}",
            name=collected.names[index],
            probe=collected.classes[int(decisions[index])],
            head=collected.classes[int(collected.predictions[index])],
        )
        evidence.append(Evidence(collected.thumbnail(index), caption))
    return tuple(evidence)


def _map_finding(collected: Collected) -> Finding:
    """Returns how far Ablation-CAM of the label follows Eigen-CAM, against that of another image."""
    settings = collected.settings
    pair = collected.eigen, collected.ablation_of_label
    result = agreement(
        *pair,
        resamples=settings.resamples,
        alpha=settings.alpha,
        generator=collected.generator("head/maps"),
    )
    if result is None:
        return too_few_maps("head", varying(*pair), _OF_MAPS, "maps")
    poor = result.p > settings.alpha or result.high < POOR
    numbers = {"own": result.own, "other": result.other, "difference": result.difference, "found": result.critical}
    sentence = (
        worded(
            "The map of the label (Ablation-CAM) hardly follows the features of its own image (Eigen-CAM): "
            "correlation {own:.2f}, with another image {other:.2f}.",
            "ラベルのマップ（Ablation-CAM）が、その画像自身の特徴（Eigen-CAM）とほとんど一致しません"
            "（相関 {own:.2f}、別の画像とは {other:.2f}）。",
            **numbers,
        )
        if poor
        else worded(
            "The map of the label (Ablation-CAM) follows the features (Eigen-CAM) of its own image: correlation "
            "{own:.2f}, with another image {other:.2f}. A gap of {found:.2f} would have been found.",
            "ラベルのマップ（Ablation-CAM）は、その画像自身の特徴（Eigen-CAM）に沿っています"
            "（相関 {own:.2f}、別の画像とは {other:.2f}）。差が {found:.2f} 以上あれば検出できました。",
            **numbers,
        )
    )
    return Finding(
        "head",
        "low" if poor else "ok",
        "maps",
        sentence,
        worded(
            "Compare a linear probe with the head (--train), which tests this directly.",
            "線形プローブとヘッドを比べてください（--train）。それが直接の検定になります。",
        )
        if poor
        else NOTHING_TO_DO,
        _OF_MAPS,
        result.difference,
        result.low,
        result.high,
        result.p,
        result.p,
        n=result.n,
        threshold=POOR,
        cost=64 * len(collected),
        evidence=_map_pairs(collected) if poor else (),
        values={"own": result.own, "other": result.other, "smallest difference found": result.critical},
    )


def _map_pairs(collected: Collected) -> tuple[Evidence, ...]:
    rows = []
    for index in range(min(4, len(collected))):
        picture = collected.thumbnail(index)
        maps = (collected.eigen[index].clamp_min(0), collected.ablation_of_label[index].clamp_min(0))
        rows.append([picture, *(overlay(picture, map_) for map_ in maps)])
    caption = worded("Picture, Eigen-CAM, Ablation-CAM of the label", "画像、Eigen-CAM、ラベルの Ablation-CAM")
    return (Evidence(beside(rows), caption),)

"""The question "backbone": do the features, before any class is decided, hold what the classes differ in?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from konkyo.draw.overlay import overlay
from konkyo.engine.session import untouched
from konkyo.errors import silenced
from konkyo.evaluation.batches import untrained
from konkyo.evaluation.diagnose.chance import p_values
from konkyo.evaluation.diagnose.collected import Collected, embedded, question
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
from konkyo.evaluation.diagnose.statistics import (
    agreement,
    matching,
    mcnemar,
    nearest,
    standardised,
    varying,
    vote,
)
from konkyo.metrics.distances import on_grid
from konkyo.utils.statistics import interval_of_share
from konkyo.utils.tensors import safe_divide

NEIGHBOURS = 10
LEAST_GAP = 0.1
"""From this gap of correlations on, maps follow their own picture: 0.59 is measured with a good backbone, 0.01 with a
random one."""
_LEAST = 6
_SHOWN = 6
_RETRAIN: Text = {
    "en": "Train the backbone longer, or start from pretrained weights; check the preprocessing and that the weights "
    "were loaded.",
    "ja": "バックボーンをさらに学習するか、学習済みの重みから始めてください。前処理と、"
    "重みが読み込まれているかも確認してください。",
}


def _cost(collected: Collected) -> int:
    if collected.train is not None and collected.labels is not None:
        return len(collected) + len(collected.train)
    return 0 if collected.has_masks else 64 * len(collected)


@question("backbone", forwards=_cost)
def ask(collected: Collected) -> tuple[Finding, ...]:
    """Returns what the data allows to ask: of masks, of labels with training images, or of the pictures alone."""
    findings = []
    if collected.has_masks:
        findings.append(_of_masks(collected))
    if collected.labels is not None and collected.train is not None and collected.train.labels is not None:
        findings.append(_of_labels(collected, collected.train))
    return tuple(findings) or (_of_pictures(collected),)


# --- with masks -------------------------------------------------------------------------------------------------------


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Returns the share of every map's positive part that every mask holds. (n, h, w), (m, h, w) -> (n, m) float64"""
    energy = maps.clamp_min(0).flatten(1).double()
    return safe_divide(energy @ masks.flatten(1).double().mT, energy.sum(1, keepdim=True))


def _of_masks(collected: Collected) -> Finding:
    """Returns whether Eigen-CAM lies on the objects more than on the objects of other images."""
    settings, statistic = collected.settings, "share of Eigen-CAM inside the masks, minus that in other images' masks"
    known = [(index, mask) for index in range(len(collected)) if (mask := collected.mask(index)) is not None]
    known = [(index, mask) for index, mask in known if 0 < float(mask.float().mean()) < 1]
    if len(known) < _LEAST:
        return too_few("backbone", len(known), statistic, "masks")
    indices = [index for index, _ in known]
    masks = torch.cat([on_grid(mask[None].float(), collected.grid) for _, mask in known])
    table = energy_inside(collected.eigen[indices], masks)
    test = matching(
        table,
        resamples=settings.resamples,
        alpha=settings.alpha,
        generator=collected.generator("backbone/masks"),
    )
    good = test.p <= settings.alpha
    numbers = {"inside": test.own, "chance": test.other, "area": float(masks.mean()), "found": test.critical}
    return Finding(
        "backbone",
        "ok" if good else "medium",
        "masks",
        worded(
            "The backbone looks at the objects: {inside:.0%} of its map (Eigen-CAM) lies on them, {chance:.0%} by "
            "chance. {found:.1%} more than chance would have been found.",
            "バックボーンは対象物を見ています：マップ（Eigen-CAM）の {inside:.0%} が対象物の上にあります"
            "（偶然なら {chance:.0%}）。偶然を {found:.1%} 上回れば検出できました。",
            **numbers,
        )
        if good
        else worded(
            "The backbone's map (Eigen-CAM) lies on the objects no more than by chance: {inside:.0%}, by chance "
            "{chance:.0%}.",
            "バックボーンのマップ（Eigen-CAM）が対象物の上にある割合は {inside:.0%} で、偶然（{chance:.0%}）"
            "と変わりません。",
            **numbers,
        ),
        NOTHING_TO_DO if good else _RETRAIN,
        statistic,
        test.difference,
        test.low,
        test.high,
        test.p,
        test.p,
        n=test.n,
        evidence=_extremes(collected, indices, table.diagonal() - (table.sum(1) - table.diagonal()) / (test.n - 1)),
        values={"inside": test.own, "by chance": test.other, "share of the area": numbers["area"]},
    )


def _extremes(collected: Collected, indices: Sequence[int], shares: Tensor) -> tuple[Evidence, ...]:
    order = shares.argsort(descending=True, stable=True).tolist()
    few = min(_SHOWN, len(order) // 2)
    rows = [[_overlay_of(collected, indices[place]) for place in part] for part in (order[:few], order[::-1][:few])]
    caption = worded(
        "Eigen-CAM: above the images with most of it on the objects, below those with least",
        "Eigen-CAM：上は対象物に最も多く重なる画像、下は最も少ない画像",
    )
    return (Evidence(beside(rows), caption),)


def _overlay_of(collected: Collected, index: int) -> Image.Image:
    return overlay(collected.thumbnail(index), collected.eigen[index].clamp_min(0))


# --- with labels and training images ----------------------------------------------------------------------------------


def _of_labels(collected: Collected, train: Collected) -> Finding:
    """Returns whether nearest training images are of the right class, and more often than without training."""
    settings, labels = collected.settings, collected.true_labels
    statistic = f"accuracy of the {NEIGHBOURS} nearest training images, minus that of an untrained copy"
    if len(collected) < _LEAST or len(train) < NEIGHBOURS:
        return too_few("backbone", min(len(collected), len(train)), statistic, "labels")
    kinds, known = collected.probabilities.shape[1], train.true_labels
    neighbours = nearest_training(collected, train)
    decided = vote(neighbours, known, kinds)
    with_random = vote(_of_untrained(collected, train), known, kinds)
    right, right_random = decided == labels, with_random == labels
    test = mcnemar(right, right_random)
    generator = collected.generator("backbone/labels")
    by_chance = torch.stack(
        [
            (decided == labels[torch.randperm(len(labels), generator=generator)]).double().mean()
            for _ in range(settings.resamples)
        ]
    )
    accuracy, without = float(right.double().mean()), float(right_random.double().mean())
    p_chance = float(p_values(by_chance.numpy(), accuracy))
    severity = _severity(test.p, p_chance, test.high, settings.alpha)
    low, high = interval_of_share(int(right.sum()), len(right))
    numbers = {
        "accuracy": accuracy,
        "untrained": without,
        "chance": float(by_chance.mean()),
        "found": test.smallest(settings.alpha, 0.0),
    }
    return Finding(
        "backbone",
        severity,
        "labels",
        _sentence_of_labels(severity, p_chance <= settings.alpha, numbers),
        NOTHING_TO_DO
        if severity == "ok"
        else worded("Give more images.", "画像を増やしてください。")
        if severity == "unknown"
        else _RETRAIN,
        statistic,
        test.difference,
        test.low,
        test.high,
        test.p,
        test.p,
        n=test.n,
        cost=len(collected) + len(train),
        evidence=_queries(collected, train, neighbours),
        values={
            "accuracy": accuracy,
            "low": low,
            "high": high,
            "accuracy of an untrained copy": without,
            "accuracy by chance": numbers["chance"],
            "p against chance": p_chance,
            "smallest difference found": numbers["found"],
        },
    )


def _severity(p: float, p_chance: float, high: float, alpha: float) -> Severity:
    if p_chance > alpha:
        return "high"
    if p <= alpha:
        return "ok"
    return "unknown" if high > LEAST_GAP else "medium"  # too few images to exclude a difference that matters


def _sentence_of_labels(severity: Severity, better: bool, numbers: dict[str, float]) -> Text:
    if not better:
        return worded(
            "Its features do not tell the classes apart: the nearest training images are right for {accuracy:.0%}, "
            "{chance:.0%} by chance.",
            "特徴ではクラスを区別できません：最も近い学習画像による正解率は {accuracy:.0%}、"
            "偶然なら {chance:.0%} です。",
            **numbers,
        )
    if severity == "ok":
        return worded(
            "Its features tell the classes apart: the nearest training images are right for {accuracy:.0%} "
            "(untrained: {untrained:.0%}; by chance {chance:.0%}). A gain of {found:.0%} would have been found.",
            "特徴はクラスを区別しています：最も近い学習画像による正解率は {accuracy:.0%}"
            "（未学習のネットワーク {untrained:.0%}、偶然 {chance:.0%}）。{found:.0%} の向上があれば検出できました。",
            **numbers,
        )
    return worded(
        "Its features hardly tell the classes apart better than those of an untrained copy: {accuracy:.0%}, "
        "untrained {untrained:.0%}.",
        "特徴によるクラスの区別は、未学習のネットワークとほとんど変わりません：{accuracy:.0%}、"
        "未学習 {untrained:.0%}。",
        **numbers,
    )


def nearest_training(collected: Collected, train: Collected) -> Tensor:
    """Returns the indices (n, 10) of the training images whose standardised features are nearest by cosine."""

    def made() -> Tensor:
        known = train.features
        return nearest(standardised(collected.features, known), standardised(known, known), NEIGHBOURS)[0]

    return collected.once("nearest training images", made)


def _of_untrained(collected: Collected, train: Collected) -> Tensor:
    """Returns the same of the features of an untrained copy."""
    bare = untrained(collected.model, collected.settings.seed)
    layer = collected.settings.layer
    if isinstance(layer, torch.nn.Module):
        layer = collected.layer
    session = untouched(bare.module, collected.settings.seed)
    with silenced(), session, session, torch.no_grad():  # twice: see `Session`
        sets = [
            torch.cat([embedded(bare, part.images(indices), layer)[1].cpu() for indices in part.parts()])
            for part in (collected, train)
        ]
    queries, known = sets
    return nearest(standardised(queries, known), standardised(known, known), NEIGHBOURS)[0]


def _queries(collected: Collected, train: Collected, neighbours: Tensor) -> tuple[Evidence, ...]:
    """Returns six images with their five nearest training images, spread over the data."""
    step = max(1, len(collected) // _SHOWN)
    rows = [
        [collected.thumbnail(index), *(train.thumbnail(int(k)) for k in neighbours[index, :5])]
        for index in range(0, step * min(_SHOWN, len(collected)), step)
    ]
    caption = worded(
        "Left an image, beside it the five training images that it resembles most for the model",
        "左が画像、右はモデルにとって最も似ている 5 枚の学習画像",
    )
    return (Evidence(beside(rows), caption),)


# --- without anything -------------------------------------------------------------------------------------------------


def _of_pictures(collected: Collected) -> Finding:
    """Returns whether the maps follow their pictures, or look the same for any."""
    settings = collected.settings
    statistic = "correlation of Eigen-CAM and Ablation-CAM of the decision, minus that with another image's"
    pair = collected.eigen, collected.ablation_of_decision
    result = agreement(
        *pair,
        resamples=settings.resamples,
        alpha=settings.alpha,
        generator=collected.generator("backbone/pictures"),
    )
    if result is None:
        return too_few_maps("backbone", varying(*pair), statistic, "pictures")
    good = result.p <= settings.alpha and result.difference >= LEAST_GAP
    numbers = {"own": result.own, "other": result.other, "found": max(result.critical, LEAST_GAP)}
    return Finding(
        "backbone",
        "ok" if good else "medium",
        "pictures",
        worded(
            "The map follows the picture: Eigen-CAM and Ablation-CAM agree on the same image ({own:.2f}) more than on "
            "two images ({other:.2f}). A gap of {found:.2f} would have been found. This says nothing of the head.",
            "マップは画像に沿っています：Eigen-CAM と Ablation-CAM の一致は同じ画像で {own:.2f}、"
            "別の画像とは {other:.2f}。"
            "差が {found:.2f} 以上あれば検出できました。ヘッドについては何も言えません。",
            **numbers,
        )
        if good
        else worded(
            "The map looks the same for any picture: Eigen-CAM and Ablation-CAM agree on the same image ({own:.2f}) "
            "hardly more than on two images ({other:.2f}).",
            "マップはどの画像でもほぼ同じです：Eigen-CAM と Ablation-CAM の一致は同じ画像で {own:.2f}、"
            "別の画像とでも {other:.2f} です。",
            **numbers,
        ),
        NOTHING_TO_DO if good else _RETRAIN,
        statistic,
        result.difference,
        result.low,
        result.high,
        result.p,
        result.p,
        n=result.n,
        threshold=LEAST_GAP,
        cost=64 * len(collected),
        evidence=_pairs(collected),
        values={"own": result.own, "other": result.other, "smallest difference found": result.critical},
    )


def _pairs(collected: Collected) -> tuple[Evidence, ...]:
    rows = [
        [
            collected.thumbnail(index),
            _overlay_of(collected, index),
            overlay(collected.thumbnail(index), collected.ablation_of_decision[index].clamp_min(0)),
        ]
        for index in range(min(4, len(collected)))
    ]
    caption = worded("Picture, Eigen-CAM, Ablation-CAM of the decision", "画像、Eigen-CAM、決定の Ablation-CAM")
    return (Evidence(beside(rows), caption),)

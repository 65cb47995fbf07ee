"""The question "wrong": why is an image decided as another class than its label?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from konkyo.draw.overlay import overlay
from konkyo.evaluation.diagnose.backbone import nearest_training
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.evidence import beside
from konkyo.evaluation.diagnose.findings import NOTHING_TO_DO, Evidence, Finding, Text, worded
from konkyo.evaluation.diagnose.places import place_of
from konkyo.targets.classes import ClassTarget, ContrastTarget
from konkyo.utils.statistics import interval_of_share
from konkyo.utils.tensors import min_max

SHOWN = 12
"""So many wrong images have a finding of their own: those that the model is most sure of."""
NEIGHBOURS = 5


@dataclass(frozen=True, eq=False)
class Mistakes:
    """What is known of every image that is decided wrongly, the surest mistakes first."""

    indices: tuple[int, ...]
    margins: Tensor
    """(m,) P(decision) - P(label)."""
    contrasts: Tensor
    """(m, h, w) signed: what speaks for the decision and against the label, by Grad-CAM of the logits' difference."""
    decision_maps: Tensor
    """(m, h, w) of the decision."""
    neighbours: Tensor | None
    """(m, 5) the nearest training images."""
    of_decision: Tensor
    """(m,) the share of them labelled as decided; NaN without training images."""
    of_label: Tensor
    """(m,) the share labelled as the image itself."""
    to_decision: Tensor
    """(m,) how far the decision's map is from the mean map of that class (1 - correlation)."""
    to_label: Tensor
    """(m,) how far the label's map is from the mean map of its class."""


def mistakes(collected: Collected) -> Mistakes:
    """Explains all images that are decided wrongly; asked again, it is not computed again."""
    return collected.once("mistakes", lambda: _mistakes(collected))


def _mistakes(collected: Collected) -> Mistakes:
    labels, decisions = collected.true_labels, collected.predictions
    margins = collected.confidence - collected.label_probability
    order = torch.nonzero(~collected.correct)[:, 0]
    order = order[margins[order].argsort(descending=True, stable=True)]
    indices = order.tolist()
    contrasts, maps = list[Tensor](), list[Tensor]()
    for part in collected.parts(indices):
        pairs = [ContrastTarget(ClassTarget(int(decisions[i])), ClassTarget(int(labels[i]))) for i in part]
        contrasts.append(collected.explained(part, pairs, method="grad_cam", signed=True))
        wanted = [int(decisions[i]) for i in part]
        maps.append(collected.explained(part, wanted, method=collected.settings.method))
    none = torch.zeros(0, *collected.grid)
    decision_maps = torch.cat(maps) if maps else none
    train = collected.train
    near, of_decision, of_label = None, torch.full((len(order),), torch.nan), torch.full((len(order),), torch.nan)
    if train is not None and train.labels is not None and len(order):
        near = nearest_training(collected, train)[order, :NEIGHBOURS]
        of = train.true_labels[near]
        of_decision, of_label = ((of == known[order, None]).float().mean(1) for known in (decisions, labels))
    means = class_mean_maps(collected)
    return Mistakes(
        tuple(indices),
        margins[order],
        torch.cat(contrasts) if contrasts else none,
        decision_maps,
        near,
        of_decision,
        of_label,
        map_distance(min_max(decision_maps), means[decisions[order]]),
        map_distance(collected.unit_maps[order], means[labels[order]]),
    )


def class_mean_maps(collected: Collected) -> Tensor:
    """Returns the mean map (K, h, w) in [0, 1] of every class: of the training images' maps where there are any.

    NaN of a class without images.
    """

    def made() -> Tensor:
        known = collected if collected.train is None or collected.train.labels is None else collected.train
        of = known.predictions if known.labels is None else known.labels
        sums = torch.zeros(collected.probabilities.shape[1], *collected.grid).index_add(0, of, known.unit_maps)
        counts = torch.bincount(of, minlength=len(sums))[:, None, None]
        return sums / counts  # of none 0 / 0 is NaN

    return collected.once("mean maps of classes", made)


def map_distance(maps: Tensor, means: Tensor) -> Tensor:
    """Returns 1 - Pearson's correlation (n,) of maps and means (n, h, w); NaN where one is constant or NaN."""
    one, two = (m.flatten(1) - m.flatten(1).mean(1, keepdim=True) for m in (maps, means))
    norms = torch.linalg.vector_norm(one, dim=1) * torch.linalg.vector_norm(two, dim=1)
    return 1 - (one * two).sum(1) / torch.where(norms > 0, norms, torch.nan)


@question("wrong", needs=("labels",), forwards=lambda collected: 2 * int((~collected.correct).sum()))
def ask(collected: Collected) -> tuple[Finding, ...]:
    """Returns how many images are wrong, and why those are that the model is surest of."""
    all_ = mistakes(collected)
    n, wrong = len(collected), len(all_.indices)
    low, high = interval_of_share(wrong, n)
    numbers = {"wrong": wrong, "n": n, "share": wrong / n, "high": high}
    if not wrong:
        sentence = worded(
            "All {n} images are decided as labelled; a share of mistakes up to {high:.1%} is compatible with that.",
            "{n} 枚すべてがラベルどおりに判断されています（誤りの割合は最大 {high:.1%} まであり得ます）。",
            **numbers,
        )
    else:
        sentence = worded(
            "{wrong} of {n} images are decided wrongly ({share:.1%}).",
            "{n} 枚中 {wrong} 枚が誤って判断されています（{share:.1%}）。",
            **numbers,
        )
    summary = Finding(
        "wrong",
        "low" if wrong else "ok",
        "",
        sentence,
        worded("Read the mistakes below, the surest first.", "以下の誤りを、確信の強い順に見てください。")
        if wrong
        else NOTHING_TO_DO,
        "share of images decided wrongly",
        wrong / n,
        low,
        high,
        n=n,
        cost=2 * wrong,
    )
    return (summary, *(_finding(collected, all_, place) for place in range(min(SHOWN, wrong))))


def why(collected: Collected, all_: Mistakes, place: int) -> Text:
    """Returns why an image is wrong: what was decided, what speaks for it, and what it resembles."""
    index = all_.indices[place]
    where = place_of(all_.contrasts[place])
    values = {
        **_names(collected, index),
        "confidence": float(collected.confidence[index]),
        "truth": float(collected.label_probability[index]),
        "of_decision": round(NEIGHBOURS * float(all_.of_decision[place])) if all_.neighbours is not None else 0,
        "of_label": round(NEIGHBOURS * float(all_.of_label[place])) if all_.neighbours is not None else 0,
        "k": NEIGHBOURS,
    }
    en = "{label}, called {decision} ({confidence:.2f} vs {truth:.2f}). What speaks for {decision}: {where}."
    ja = "{label} が {decision} とされました（{confidence:.2f} 対 {truth:.2f}）。{decision} を支持するのは{where}です。"
    if all_.neighbours is not None:
        en += " Of the {k} nearest training images {of_decision} are {decision}, {of_label} are {label}."
        ja += "最も近い学習画像 {k} 枚のうち {of_decision} 枚が {decision}、{of_label} 枚が {label} です。"
    return {"en": en.format(where=where["en"], **values), "ja": ja.format(where=where["ja"], **values)}


def _names(collected: Collected, index: int) -> dict[str, str]:
    """Returns the names of an image's two classes, by what they are to it."""
    label, decision = (int(of[index]) for of in (collected.true_labels, collected.predictions))
    return {"label": collected.classes[label], "decision": collected.classes[decision]}


def _next_step(collected: Collected, all_: Mistakes, place: int) -> Text:
    index = all_.indices[place]
    names = _names(collected, index)
    if all_.neighbours is None:
        return worded(
            "Give the training images (--train) to see which of them it resembles.",
            "学習画像を与えると（--train）、似ている画像が分かります。",
        )
    if float(all_.of_decision[place]) > 0.5:
        return worded(
            "It resembles training images of {decision}: check its label and theirs; if they are right, add images "
            "of {label} like this one.",
            "{decision} の学習画像に似ています。両方のラベルを確認し、"
            "正しければこれに似た {label} の画像を追加してください。",
            **names,
        )
    if float(all_.of_label[place]) > 0.5:
        return worded(
            "Its features are those of {label}, but the head decides otherwise: see the question about the head.",
            "特徴は {label} に近いのに、ヘッドの判断が異なります。ヘッドについての項目を見てください。",
            **names,
        )
    return worded(
        "Few training images of either class resemble it: add some that do.",
        "どちらのクラスにも似た学習画像がほとんどありません。似た画像を追加してください。",
    )


def _finding(collected: Collected, all_: Mistakes, place: int) -> Finding:
    index = all_.indices[place]
    values = {
        "P(decision)": float(collected.confidence[index]),
        "P(label)": float(collected.label_probability[index]),
        "neighbours of the decision": float(all_.of_decision[place]),
        "neighbours of the label": float(all_.of_label[place]),
        "map distance to the decision's class": float(all_.to_decision[place]),
        "map distance to the label's class": float(all_.to_label[place]),
    }
    return Finding(
        "wrong",
        "low",
        collected.names[index],
        why(collected, all_, place),
        _next_step(collected, all_, place),
        "P(decision) - P(label)",
        float(all_.margins[place]),
        n=1,
        evidence=_evidence(collected, all_, place),
        values=values,
    )


def _evidence(collected: Collected, all_: Mistakes, place: int) -> tuple[Evidence, ...]:
    index = all_.indices[place]
    names = _names(collected, index)
    picture = collected.thumbnail(index)
    shown = [
        picture,
        overlay(picture, all_.decision_maps[place].clamp_min(0)),
        overlay(picture, collected.maps[index].clamp_min(0)),
        overlay(picture, all_.contrasts[place], signed=True),
    ]
    caption = worded(
        "Picture; map of {decision} (decided); map of {label} (true); what speaks for {decision} (red) and for {label} "
        "(blue)",
        "画像、{decision}（判断）のマップ、{label}（正解）のマップ、{decision} を支持する部分（赤）"
        "と {label} を支持する部分（青）",
        **names,
    )
    evidence = [Evidence(beside([shown]), caption)]
    if all_.neighbours is not None and collected.train is not None:
        near = all_.neighbours[place].tolist()
        known = collected.train
        listed = ", ".join(known.classes[int(known.true_labels[k])] for k in near)
        pictures: list[Image.Image] = [known.thumbnail(k) for k in near]
        caption = worded(
            "The training images that it resembles most: {listed}", "最も似ている学習画像：{listed}", listed=listed
        )
        evidence.append(Evidence(beside([pictures]), caption))
    return tuple(evidence)

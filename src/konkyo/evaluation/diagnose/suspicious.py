"""The question "suspicious": which images to look at first. Lists with different reasons, and never one ranking."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from konkyo.draw.overlay import overlay
from konkyo.evaluation.diagnose.backbone import nearest_training
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.cue_test import HOSTS, own_window, paste_own
from konkyo.evaluation.diagnose.evidence import beside
from konkyo.evaluation.diagnose.findings import Evidence, Finding, Severity, Text, worded
from konkyo.evaluation.diagnose.places import place_at
from konkyo.evaluation.diagnose.statistics import auroc, rank_mean
from konkyo.evaluation.diagnose.wrong import class_mean_maps, map_distance, mistakes
from konkyo.utils.tensors import min_max

SHOWN = 12
MOST = 100
"""So many images are looked at for a doubtful reason."""
LEAST_RISE = 0.02
"""A window that raises the probability of its class elsewhere by less is no reason to look."""
DOUBTFUL = 0.1
"""Below this P(label) a label is to be checked."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """A ranking of the images for one reason, the first to look at first."""

    subject: str
    """Its name: "probably wrong", "label"."""
    title: Text
    note: Text
    scores: Tensor
    """(n,) the higher, the earlier; NaN: not in the list."""
    used_labels: bool
    """Whether the labels decided about the order."""
    values: dict[str, float]
    """Numbers that tell how good the ranking is."""

    @property
    def indices(self) -> tuple[int, ...]:
        """Returns the images of the list, the first to look at first."""
        return first_of(self.scores)


def first_of(scores: Tensor) -> tuple[int, ...]:
    """Returns the images with the highest scores (n,), NaN left out."""
    order = scores.nan_to_num(-math.inf).argsort(descending=True, stable=True)
    return tuple(int(i) for i in order if not math.isnan(float(scores[i])))[:SHOWN]


def rankings(collected: Collected) -> tuple[Ranking, ...]:
    """Returns the lists that the data allows; asked again, they are not computed again."""
    return collected.once("rankings", lambda: _rankings(collected))


def _rankings(collected: Collected) -> tuple[Ranking, ...]:
    lists = [_probably_wrong(collected)]
    if collected.labels is not None:
        lists.append(_doubtful_reason(collected))
        lists.append(_label_to_check(collected))
    return tuple(lists)


def _probably_wrong(collected: Collected) -> Ranking:
    """Ranks by doubt: with training images the mean rank of three scores, without by confidence alone."""
    doubt = 1 - collected.confidence
    train, combined = collected.train, None
    if train is not None and train.labels is not None:
        near = train.true_labels[nearest_training(collected, train)]
        disagree = (near != collected.predictions[:, None]).double().mean(1)
        distance = map_distance(min_max(decision_maps(collected)), class_mean_maps(collected)[collected.predictions])
        combined = rank_mean([disagree, doubt, distance.nan_to_num(1.0)])
    scores, used, values = (doubt if combined is None else combined), False, dict[str, float]()
    if collected.labels is not None:
        wrong = ~collected.correct
        values["AUROC of confidence"] = auroc(doubt, wrong)
        if combined is not None:
            values["AUROC of the mean rank"] = auroc(combined, wrong)
            used = True
            if values["AUROC of the mean rank"] < values["AUROC of confidence"]:
                scores = doubt
    by_rank = combined is not None and scores is combined
    return Ranking(
        "probably wrong",
        worded("Probably wrong", "誤りの可能性が高い画像"),
        _order_of(by_rank, used, values),
        scores,
        used,
        values,
    )


def _order_of(by_rank: bool, used: bool, values: dict[str, float]) -> Text:
    """Returns how a list of probably wrong images is sorted, and how well that order does on the user's labels."""
    if by_rank:
        en = "Sorted by the mean rank of three: nearest training images of another class, doubt, and an unusual map."
        ja = "近い学習画像が別クラスであること、確信の低さ、通常と異なるマップの 3 つの平均順位で並べています。"
    else:
        en, ja = "Sorted by 1 - confidence.", "確信の低い順に並べています。"
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    if known:
        listed = ", ".join(f"{name.removeprefix('AUROC of ')} {value:.2f}" for name, value in known.items())
        en += f" AUROC for wrong images on these labels: {listed}."
        ja += f"ラベルに対する誤り検出の AUROC：{listed}。"
    if used:
        en += " The labels chose the better of the two orders."
        ja += "2 つの並べ方のうち良い方をラベルで選びました。"
    return {"en": en, "ja": ja}


def decision_maps(collected: Collected) -> Tensor:
    """Returns the maps (n, h, w) of the decisions: those of the labels, where these are decided."""
    if collected.labels is None:
        return collected.maps
    wrong = mistakes(collected)
    maps = collected.maps.clone()
    maps[list(wrong.indices)] = wrong.decision_maps
    return maps


def _doubtful_reason(collected: Collected) -> Ranking:
    """Ranks correct, confident images by what their hottest window does in images of other classes."""
    correct = torch.nonzero(collected.correct)[:, 0]
    sure = correct[collected.confidence[correct] >= collected.confidence.median()]
    some = sure[torch.randperm(len(sure), generator=collected.generator("doubtful reason"))[:MOST]].sort().values
    scores = torch.full((len(collected),), torch.nan, dtype=torch.float64)
    if len(some):
        scores[some] = paste_own(collected, some.tolist())
    scores = torch.where(scores > LEAST_RISE, scores, torch.nan)
    where = _places(collected, scores)
    return Ranking(
        "doubtful reason",
        worded("Right for a doubtful reason", "正解だが根拠が疑わしい画像"),
        worded(
            "Correct and sure images whose hottest window, pasted into other pictures, raises their class most. "
            "The AUROC for planted cues was 0.70 to 1.00: a help, no detector.{english}",
            "正しく確信の強い画像のうち、マップの最も強い部分を他の画像に貼るとクラスの確率が最も上がるものです。"
            "人工的な手がかりに対する AUROC は 0.70〜1.00 で、補助であり検出器ではありません。{japanese}",
            english=where["en"],
            japanese=where["ja"],
        ),
        scores,
        True,
        {"largest rise": float(scores.nan_to_num(0.0).max())},
    )


def _places(collected: Collected, scores: Tensor) -> Text:
    """Returns in which classes, and at which places, the windows of the listed images lie; the most frequent first."""
    counts = Counter[tuple[str, str, str]]()
    for index in first_of(scores):
        place = place_at(*own_window(collected, index).middle(collected.grid))
        counts[collected.classes[int(collected.true_labels[index])], place["en"], place["ja"]] += 1
    if not counts:
        return worded("", "")
    groups = counts.most_common()
    en = "; ".join(f"{name}, {place} ({count})" for (name, place, _), count in groups)
    ja = "、".join(f"{name} の{place}（{count}）" for (name, _, place), count in groups)
    return {"en": f" By class and place: {en}.", "ja": f"クラスと場所：{ja}。"}


def _label_to_check(collected: Collected) -> Ranking:
    """Ranks the wrong images by how little the model believes the label."""
    scores = torch.where(collected.correct, torch.nan, 1 - collected.label_probability)
    scores = torch.where(collected.label_probability < DOUBTFUL, scores, torch.nan)
    values = dict[str, float]()
    train = collected.train
    if train is not None and train.labels is not None and not bool(scores.isnan().all()):
        near = train.true_labels[nearest_training(collected, train)]
        other = (near != collected.true_labels[:, None]).double().mean(1)
        values["share of near training images with another label"] = float(other[~scores.isnan()].mean())
    return Ranking(
        "label",
        worded("Labels to be checked", "確認すべきラベル"),
        worded(
            "Sorted by 1 - P(label), which uses the labels. On planted label errors its AUROC was 0.87.",
            "1 - P(ラベル) の順です（ラベルを使用）。人工的な誤ラベルに対する AUROC は 0.87 でした。",
        ),
        scores,
        True,
        values,
    )


@question("suspicious", forwards=lambda collected: 0 if collected.labels is None else HOSTS * MOST)
def ask(collected: Collected) -> tuple[Finding, ...]:
    """Returns a finding per list of images to look at."""
    return tuple(_finding(collected, ranking) for ranking in rankings(collected))


def _finding(collected: Collected, ranking: Ranking) -> Finding:
    indices = ranking.indices
    severity: Severity = "low" if indices else "ok"
    names = ", ".join(collected.names[i] for i in indices[:5]) + (" …" if len(indices) > 5 else "")
    sentence: Text
    if ranking.subject == "doubtful reason" and not indices:
        sentence = worded(
            "No correct, sure image has a window that raises its class elsewhere by {least} or more.",
            "正しく確信の強い画像で、その一部が他の画像でクラスの確率を {least} 以上上げるものはありません。",
            least=LEAST_RISE,
        )
    elif indices:
        sentence = {
            "en": f"{ranking.title['en']}: {names}. {ranking.note['en']}",
            "ja": f"{ranking.title['ja']}：{names}。{ranking.note['ja']}",
        }
    else:
        sentence = worded(
            "No label is to be checked: every label has a probability of {doubtful} or more, or is decided.",
            "確認すべきラベルはありません：どのラベルも確率が {doubtful} 以上か、判断と一致しています。",
            doubtful=DOUBTFUL,
        )
    step = {
        "probably wrong": worded("Look at these images first.", "まずこれらの画像を見てください。"),
        "doubtful reason": worded(
            "Look at what lies under the hottest part of these maps; see the question about cues.",
            "マップの最も強い部分に何があるかを見てください。手がかりについての項目も見てください。",
        ),
        "label": worded("Check the labels of these images.", "これらの画像のラベルを確認してください。"),
    }
    return Finding(
        "suspicious",
        severity,
        ranking.subject,
        sentence,
        step.get(ranking.subject, worded("Look at these images.", "これらの画像を見てください。")),
        "images to look at",
        float(len(indices)),
        n=len(collected),
        evidence=_pictures(collected, ranking) if indices else (),
        values=ranking.values | {"used labels": float(ranking.used_labels)},
    )


def _pictures(collected: Collected, ranking: Ranking) -> tuple[Evidence, ...]:
    shown = ranking.indices[:6]
    maps = decision_maps(collected)
    pictures = [overlay(collected.thumbnail(i), maps[i].clamp_min(0)) for i in shown]
    parts = []
    for index in shown:
        decided = collected.classes[int(collected.predictions[index])]
        label = "" if collected.labels is None else f" ({collected.classes[int(collected.labels[index])]})"
        parts.append(f"{decided} {float(collected.confidence[index]):.2f}{label}")
    caption = worded(
        "Decision, its probability (and the label): {listed}",
        "判断とその確率（およびラベル）：{listed}",
        listed="; ".join(parts),
    )
    return (Evidence(beside([pictures]), caption),)

"""The question "confusion": which two classes are mistaken for each other, more often than mistakes fall by chance?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from konkyo.draw.overlay import overlay
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.evidence import beside, difference_picture, map_picture
from konkyo.evaluation.diagnose.findings import NOTHING_TO_DO, Evidence, Finding, worded
from konkyo.evaluation.diagnose.statistics import Swaps, swaps

OFTEN = 0.2
"""From this share of the two classes' images on, a confused pair is a medium finding."""
LEAST_COUNT = 3
_LEAST_WRONG = 6
_MOST_WRONG = 2000
"""Of more mistakes, so many are drawn for the test."""
_SIDE = 144
_STATISTIC = "images of either class that are taken for the other"


@question("confusion", needs=("labels",))
def ask(collected: Collected) -> tuple[Finding, ...]:
    """Returns the pairs of classes that are confused more than by chance, with their mean maps."""
    wrong = torch.nonzero(~collected.correct)[:, 0]
    if len(wrong) < _LEAST_WRONG or len(collected.classes) < 3:
        return (_untested(len(wrong), len(collected.classes)),)
    if len(wrong) > _MOST_WRONG:
        wrong = wrong[torch.randperm(len(wrong), generator=collected.generator("confusion/some"))[:_MOST_WRONG]]
    settings = collected.settings
    used, (labels, decisions) = _compact(torch.stack([collected.true_labels[wrong], collected.predictions[wrong]]))
    test = swaps(
        labels,
        decisions,
        len(used),
        resamples=settings.resamples,
        alpha=settings.alpha,
        generator=collected.generator("confusion"),
    )
    pairs = significant(test, settings.alpha)
    if not pairs:
        return (_ok(test, len(wrong)),)
    return tuple(_finding(collected, test, (int(used[i]), int(used[j])), (i, j)) for i, j in pairs)


def _compact(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the classes that occur, and the same numbers as indices of these."""
    used, indices = torch.unique(classes, return_inverse=True)
    return used, indices


def significant(test: Swaps, alpha: float) -> list[tuple[int, int]]:
    """Returns the pairs of classes i < j with p at most alpha and three images at least, the least probable first."""
    significant_pairs = torch.triu((test.p <= alpha) & (test.counts >= LEAST_COUNT), 1)
    pairs = [(int(i), int(j)) for i, j in torch.nonzero(significant_pairs)]
    return sorted(pairs, key=lambda pair: (float(test.p[pair]), -float(test.counts[pair] - test.expected[pair])))


def _untested(wrong: int, classes: int) -> Finding:
    if classes < 3:
        sentence = worded(
            "With two classes there is one pair only: nothing to compare.",
            "クラスが 2 つでは組が 1 つしかなく、比べるものがありません。",
        )
    else:
        sentence = worded(
            "Too few mistakes to tell which classes are confused: {wrong}.",
            "誤りが {wrong} 件しかないため、混同されるクラスは判断できません。",
            wrong=wrong,
        )
    return Finding("confusion", "unknown", "", sentence, NOTHING_TO_DO, _STATISTIC, math.nan, n=wrong)


def _ok(test: Swaps, n: int) -> Finding:
    """Returns that no pair stands out, with how often the most frequent pair would have had to occur."""
    free = torch.triu(test.expected, 1)
    place = int(free.argmax())
    i, j = divmod(place, len(free))
    expected = float(free[i, j])
    found = max(LEAST_COUNT, math.ceil(expected + test.critical * math.sqrt(max(expected, 1e-9))))
    most = int(torch.triu(test.counts, 1).max())
    return Finding(
        "confusion",
        "ok",
        "",
        worded(
            "The {n} mistakes fall on pairs of classes as chance would have it; the most frequent pair has {most}. "
            "About {found} of one pair would have been found.",
            "{n} 件の誤りは、偶然と同じようにクラスの組に散らばっています（最も多い組で {most} 件）。"
            "1 つの組に約 {found} 件あれば検出できました。",
            n=n,
            most=most,
            found=found,
        ),
        NOTHING_TO_DO,
        _STATISTIC,
        float(most),
        p=float(test.p.min()),
        p_adjusted=float(test.p.min()),
        n=n,
        values={"smallest count found": float(found)},
    )


def _finding(collected: Collected, test: Swaps, pair: tuple[int, int], place: tuple[int, int]) -> Finding:
    names = [collected.classes[index] for index in pair]
    labels, decisions = collected.true_labels, collected.predictions
    ways = [int(((labels == a) & (decisions == b)).sum()) for a, b in (pair, pair[::-1])]
    count = sum(ways)
    mistakes = int((~collected.correct).sum())
    chance = float(test.expected[place]) * max(1.0, mistakes / _MOST_WRONG)  # of more mistakes, a part was tested
    both = int(((labels == pair[0]) | (labels == pair[1])).sum())
    share = count / both if both else math.nan
    often = share >= OFTEN
    return Finding(
        "confusion",
        "medium" if often else "low",
        " / ".join(names),
        worded(
            "{first} and {second} are taken for each other {count} times, {chance:.1f} by chance: {share:.0%} of their "
            "images.",
            "{first} と {second} は {count} 回取り違えられています（偶然なら {chance:.1f} 回）。"
            "両クラスの画像の {share:.0%} です。",
            first=names[0],
            second=names[1],
            count=count,
            chance=chance,
            share=share,
        ),
        worded(
            "Look at the difference of their mean maps, and at the pictures: are the labels clear? If so, add "
            "images of both that differ in what the maps leave out.",
            "平均マップの差と画像を見て、ラベルが明確か確認してください。明確なら、マップが見ていない部分の異なる画像を"
            "両クラスに追加してください。",
        ),
        _STATISTIC,
        float(count),
        p=float(test.p[place]),
        p_adjusted=float(test.p[place]),
        n=both,
        threshold=OFTEN if often else float(LEAST_COUNT),
        evidence=_evidence(collected, pair),
        values={
            "by chance": chance,
            "share of their images": share,
            f"{names[0]} taken for {names[1]}": float(ways[0]),
            f"{names[1]} taken for {names[0]}": float(ways[1]),
        },
    )


def _evidence(collected: Collected, pair: tuple[int, int]) -> tuple[Evidence, ...]:
    labels, decisions = collected.true_labels, collected.predictions
    first, second = (collected.classes[index] for index in pair)
    rows = [(torch.nonzero((labels == a) & (decisions == b))[:2, 0].tolist()) for a, b in (pair, pair[::-1])]
    evidence = []
    if (maps := mean_maps(collected, pair)) is not None:
        caption = worded(
            "Mean maps of {first} and {second}, and their difference (red: more of {first})",
            "{first} と {second} の平均マップと、その差（赤：{first} の方が強い）",
            first=first,
            second=second,
        )
        evidence.append(
            Evidence(
                beside([[*(map_picture(m, _SIDE) for m in maps), difference_picture(*maps, _SIDE)]], _SIDE), caption
            )
        )
    for index in (index for row in rows for index in row):
        caption = worded(
            "{name}: {label}, taken for {decision}",
            "{name}：{label} が {decision} とされた画像",
            name=collected.names[index],
            label=collected.classes[int(labels[index])],
            decision=collected.classes[int(decisions[index])],
        )
        evidence.append(Evidence(overlay(collected.thumbnail(index), collected.unit_maps[index]), caption))
    return tuple(evidence)


def mean_maps(collected: Collected, classes: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """Returns the mean maps (h, w) in [0, 1] of two labels; None where a class has no image."""
    members = [collected.of_class(index) for index in classes]
    if not all(members):
        return None
    first, second = (collected.unit_maps[of].mean(0) for of in members)
    return first, second

"""How raters answered: attention items, time, sides, repeats; and the rules that say whose answers are left out."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from konkyo.errors import unknown
from konkyo.survey.form import Answer, Item
from konkyo.utils.statistics import interval_of_share

_FAST = 1.0  # seconds; nobody has looked at two maps and their picture by then


@dataclass(frozen=True)
class RaterQuality:
    """It says how one rater answered. Shares are NaN where there is nothing that they are of."""

    rater: str
    answers: int
    ties: float
    """The share of ties among answers to plain items."""
    cannot_judge: float
    failed: int
    """Attention items that were not answered as expected."""
    attention: int
    same: int
    """Repeats that were answered as the first time: the same method, or a tie again."""
    repeats: int
    seconds: float
    """The median time of an answer."""
    fast: float
    """The share of answers that took less than one second."""
    left: float
    """The share of answers for the left side among answers for a side, plain items only."""
    sided: int
    """How many answers to plain items are for a side."""
    run: int
    """The longest run of the same answer (left, right, ...) in the order of answering."""
    agreeing: float
    """The share of this rater's choices that are also the choice of most other raters of the item (and pair)."""
    excluded: str
    """Why the rule of exclusion leaves this rater out; "" of one who is kept."""


@dataclass(frozen=True)
class Rule:
    """A rule of exclusion; it is written down before answers are looked at, and reported with its name."""

    failed: float
    """From this share of failed attention items on a rater is left out; above 1: never."""
    seconds: float = 0.0
    """A rater whose median time is below is left out."""
    sided: float = math.inf
    """A rater with so many answers for a side, all for the same one, is left out."""

    def reason(self, quality: RaterQuality) -> str:
        """Returns why a rater is left out, "attention", "time" or "side"; "" of one who is kept."""
        if quality.attention and quality.failed and quality.failed / quality.attention >= self.failed:
            return "attention"
        if quality.seconds < self.seconds:
            return "time"
        return "side" if quality.sided >= self.sided and quality.left in (0.0, 1.0) else ""


RULES: Mapping[str, Rule] = {
    "standard": Rule(0.5, _FAST, 10),
    "attention": Rule(0.0),
    "none": Rule(math.inf),
}
"""standard: half or more of the attention items failed, a median below one second, or ten or more answers for a side
that are all for the same one (with random sides, once in 500 careful raters). attention: any attention item failed."""


def rule_of(name: str) -> Rule:
    """Returns the rule of this name. KonkyoError: there is none."""
    if name not in RULES:
        raise unknown("rule of exclusion", name, RULES)
    return RULES[name]


def qualities(answers: Sequence[Answer], items: Mapping[str, Item], rule: Rule) -> tuple[RaterQuality, ...]:
    """Returns how every rater answered, by name. `items`: those of the form; others count as plain."""
    by_rater: dict[str, list[Answer]] = {}
    for answer in sorted(answers, key=lambda a: (a.position, a.timestamp)):
        by_rater.setdefault(answer.rater, []).append(answer)
    plain = [a for a in answers if is_plain(a, items)]
    choices = Counter((question_of(a), a.preferred) for a in plain if a.answer != "cannot_judge")
    totals: dict[tuple[object, ...], list[tuple[str | None, int]]] = {}
    for (question, preferred), count in choices.items():
        totals.setdefault(question, []).append((preferred, count))
    return tuple(_quality(rater, by_rater[rater], items, totals, rule) for rater in sorted(by_rater))


def is_plain(answer: Answer, items: Mapping[str, Item]) -> bool:
    """Tells whether an answer is to an item that preferences are counted over; "(blank)" is no method."""
    if answer.item in items:
        return items[answer.item].kind == "plain"
    return not answer.method_left.startswith("(") and not answer.method_right.startswith("(")


def question_of(answer: Answer) -> tuple[object, ...]:
    """Returns what was asked, whichever method was on the left: the item and both methods."""
    return (answer.item, *sorted((answer.method_left, answer.method_right)))


def _quality(
    rater: str,
    answers: Sequence[Answer],
    items: Mapping[str, Item],
    totals: Mapping[tuple[object, ...], Sequence[tuple[str | None, int]]],
    rule: Rule,
) -> RaterQuality:
    plain = [a for a in answers if is_plain(a, items)]
    judged = [a for a in plain if a.answer != "cannot_judge"]
    sided = [a for a in plain if a.answer in ("left", "right")]
    checks = [passed for a in answers if a.item in items and (passed := a.passed(items[a.item])) is not None]
    again = repeats_of(answers, items)
    times = [a.ms / 1000 for a in answers]
    agreeing = [common for a in judged if (common := _with_most(a, totals[question_of(a)])) is not None]
    values = {
        "rater": rater,
        "answers": len(answers),
        "ties": _share([a.answer == "tie" for a in plain]),
        "cannot_judge": _share([a.answer == "cannot_judge" for a in plain]),
        "failed": checks.count(False),
        "attention": len(checks),
        "same": sum(one.preferred == other.preferred for one, other in again),
        "repeats": len(again),
        "seconds": statistics.median(times),
        "fast": _share([time < _FAST for time in times]),
        "left": _share([a.answer == "left" for a in sided]),
        "sided": len(sided),
        "run": max(len(list(group)) for _, group in groupby(a.answer for a in answers)),
        "agreeing": _share(agreeing),
    }
    quality = RaterQuality(**values, excluded="")  # type: ignore[arg-type] # each by its name
    return replace(quality, excluded=rule.reason(quality))


def _with_most(answer: Answer, totals: Sequence[tuple[str | None, int]]) -> bool | None:
    """Tells whether an answer is that of most other raters; None where no answer of theirs is the most frequent."""
    others = {name: count - (name == answer.preferred) for name, count in totals}
    most = max(others.values())
    leading = [name for name, count in others.items() if count == most]
    return leading[0] == answer.preferred if most and len(leading) == 1 else None


def repeats_of(answers: Sequence[Answer], items: Mapping[str, Item]) -> list[tuple[Answer, Answer]]:
    """Returns the pairs of answers (first, repeat) of a rater that are both judgements of the same two methods."""
    given = {(a.rater, a.item): a for a in answers if a.answer != "cannot_judge"}
    pairs = []
    for (rater, name), answer in given.items():
        item = items.get(name)
        before = given.get((rater, item.of)) if item is not None and item.of is not None else None
        if before is not None and question_of(before)[1:] == question_of(answer)[1:]:
            pairs.append((before, answer))
    return pairs


@dataclass(frozen=True)
class Repeats:
    """It says how often raters answer as before when an item comes again with its sides swapped."""

    n: int
    same: int
    """The same method, or a tie again."""
    same_side: int
    """The same side, and so the other method."""
    share: float
    low: float
    """Of Wilson's 95 % interval of the share; it takes repeats for independent."""
    high: float

    @classmethod
    def of(cls, answers: Sequence[Answer], items: Mapping[str, Item]) -> Repeats:
        """Counts the repeats of all raters."""
        pairs = repeats_of(answers, items)
        same = sum(one.preferred == other.preferred for one, other in pairs)
        sides = sum(one.answer == other.answer and one.answer != "tie" for one, other in pairs)
        share = same / len(pairs) if pairs else math.nan
        return cls(len(pairs), same, sides, share, *interval_of_share(same, len(pairs)))


@dataclass(frozen=True)
class Sides:
    """It says whether raters favour a side. Sides are drawn at random, so that each is chosen half of the time."""

    left: int
    right: int
    share: float
    """Of the left side."""
    low: float
    """Of the 95 % interval by Clopper and Pearson."""
    high: float
    p: float
    """Two-sided, binomial. Sides are drawn at random, and equally often for every method and rater, so it is smaller
    than it should be seldom: the surer raters prefer a method, the nearer to one half the share of sides."""

    @classmethod
    def of(cls, answers: Sequence[Answer], items: Mapping[str, Item]) -> Sides:
        """Counts the answers to plain items that are for a side."""
        from konkyo.survey.preference import SignTest

        words = Counter(a.answer for a in answers if is_plain(a, items))
        test = SignTest.of(words["left"], words["right"])
        return cls(words["left"], words["right"], test.share, test.low, test.high, test.p)


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else math.nan

"""How far raters agree beyond chance: Fleiss' kappa and Krippendorff's alpha of nominal answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from konkyo.survey.votes import Integers, Votes


@dataclass(frozen=True)
class Agreement:
    """The agreement of raters on items of two methods; first, tie and second are three answers without an order."""

    first: str
    second: str
    items: int
    """Those with two answers or more; the others say nothing."""
    answers: int
    observed: float
    """The probability that two answers on one item agree, P of Fleiss."""
    expected: float
    """The probability that any two answers agree, P_e of Fleiss."""
    kappa: float
    alpha: float

    @classmethod
    def of(cls, votes: Votes) -> Agreement:
        """Makes the agreement of votes between two methods, all of one pair, one at least."""
        counts = votes.by_item()
        used = counts[counts.sum(1) > 1]
        observed, expected, kappa = fleiss(used)
        names = votes.methods[int(votes.first[0])], votes.methods[int(votes.second[0])]
        return cls(*names, len(used), int(used.sum()), observed, expected, kappa, krippendorff(used))


def fleiss(counts: Integers) -> tuple[float, float, float]:
    """Returns P, P_e and kappa = (P - P_e) / (1 - P_e) of answers counted by item and category (I, K) (Fleiss, 1971).

    P is the mean over items of sum_k n_k (n_k - 1) / (n (n - 1)), P_e the sum of squared shares of categories. Items
    may have different numbers n of answers, two or more; with equal ones it is Fleiss' formula to the letter. NaN where
    there is no item, or one category only.
    """
    n = counts.sum(1)
    if not len(n):
        return (math.nan,) * 3
    observed = float(((counts * (counts - 1)).sum(1) / (n * (n - 1))).mean())
    expected = float(((counts.sum(0) / counts.sum()) ** 2).sum())
    return observed, expected, (observed - expected) / (1 - expected) if expected < 1 else math.nan


def krippendorff(counts: Integers) -> float:
    """Returns alpha = 1 - D_o / D_e of answers counted by item and category (I, K), nominal (Krippendorff, 2011).

    D_o is the share of disagreeing pairs of answers within items, where each of an item's n answers has the weight
    1 / (n - 1) in its pairs; D_e that among all pairs of answers. Raters may miss items; items with a single answer
    do not count. NaN where there is nothing to compare, or one category only.
    """
    counts = counts[counts.sum(1) > 1]
    n, total = counts.sum(1), int(counts.sum())
    categories = counts.sum(0)
    expected = float((categories * (total - categories)).sum())
    if not expected:
        return math.nan
    observed = float(((counts * (n[:, None] - counts)).sum(1) / (n - 1)).sum())
    return 1 - (total - 1) * observed / expected

"""The claims of the paper on IG-ODAM, each judged by a written rule on what was measured of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from konkyo.evaluation.result import Evaluation, Table, bracketed
from konkyo.studies.ig_odam import PATHS, Convergence

Verdict: TypeAlias = Literal["confirmed", "refuted", "cannot be told"]
Values: TypeAlias = Mapping[tuple[str, str], Mapping[tuple[str, int], float]]
"""(method, column) -> {(image, number of the detection in it): value}; NaN where a map or the truth is absent."""

RESAMPLES = 4000
LEAST_IMAGES = 10
"""Of fewer images nothing is told."""
LEAST_SHARE = 0.1
"""A gain of less than this share of the paper's counts as none."""
DISTANCE, TRACKED = "distance", "tracked"
"""Columns of `path_values`: the distance from the integral, and whether the match never jumps along the path."""
LOWER = ("deletion", "odi", "compactness", "max_sensitivity", DISTANCE)
"""Of these columns the lower is better."""

RULES = f"""A claim is made of comparisons: a method is better than another in a column. Their difference is taken
on the detections where both have a value, and counts as positive where it is for the claim. Its interval comes from
resampling images ({RESAMPLES} times). A comparison is **confirmed** where the 95 % interval lies above 0. It is
**refuted** where the interval lies at or below a tenth of the gain that the paper reports (at or below 0 where it
reports none): a gain so small counts as none. Else, and of fewer than {LEAST_IMAGES} images, it **cannot be told**.
A claim is confirmed where all of its comparisons are, and refuted where one of them is. Since one is enough, the
intervals that refute are wider: of n comparisons each has a level of 1 - 0.05 / n. A claim that was not measured as
a whole cannot be confirmed."""


@dataclass(frozen=True)
class Comparison:
    """A comparison says that one method is better than another in a column, or than a number."""

    better: str
    worse: str | float
    column: str
    gain: float = 0.0
    """How much better it is in the paper, in units of the column; 0 where the paper gives no numbers."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, as comparisons that are to hold all together."""

    name: str
    text: str
    source: str
    """Where the paper has it."""
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, positive where they are for the claim, with its intervals."""

    images: int
    detections: int
    mean: float
    low: float
    """The lower end of the 95 % interval."""
    high: float
    highest: float
    """The upper end of the interval that refutes."""

    def verdict(self, gain: float) -> Verdict:
        """Judges the comparison by the rules."""
        if self.images < LEAST_IMAGES:
            return "cannot be told"
        if self.highest <= LEAST_SHARE * gain:
            return "refuted"
        return "confirmed" if self.low > 0 else "cannot be told"


@dataclass(frozen=True)
class Judgement:
    """A claim with what was measured of its comparisons."""

    claim: Claim
    differences: tuple[Difference, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """These are the verdicts on the comparisons."""
        pairs = zip(self.claim.comparisons, self.differences, strict=True)
        return tuple(difference.verdict(comparison.gain) for comparison, difference in pairs)

    @property
    def verdict(self) -> Verdict:
        """This is the verdict on the claim."""
        if "refuted" in self.verdicts:
            return "refuted"
        return "confirmed" if set(self.verdicts) == {"confirmed"} else "cannot be told"


def _faithful(better: str, others: Mapping[str, tuple[float, float]]) -> tuple[Comparison, ...]:
    """Compares by deletion and insertion; `others`: the gains of the paper's table 1."""
    pairs = [(other, dict(zip(("deletion", "insertion"), gains, strict=True))) for other, gains in others.items()]
    return tuple(Comparison(better, other, name, gain) for other, gains in pairs for name, gain in gains.items())


_OF_ADAPTIVE = {
    "grad_cam": (0.2634, 0.1465),
    "grad_cam_pp": (0.2612, 0.1484),
    "d_rise": (0.1109, 0.1265),
    "odam": (0.0877, 0.1051),
    "ig_odam": (0.0500, 0.0774),
}
"""What Adaptive IG-ODAM gains in deletion and insertion, as shares; the table has them in percent."""

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "odam_cams",
        "ODAM is more faithful than Grad-CAM and Grad-CAM++.",
        "table 1",
        _faithful("odam", {"grad_cam": (0.1757, 0.0414), "grad_cam_pp": (0.1735, 0.0433)}),
    ),
    Claim(
        "odam_drise", "ODAM is more faithful than D-RISE.", "table 1", _faithful("odam", {"d_rise": (0.0232, 0.0214)})
    ),
    Claim(
        "integral",
        "Integrating the gradient makes ODAM more faithful.",
        "section 4.1",
        _faithful("ig_odam", {"odam": (0.0377, 0.0277)}),
    ),
    Claim(
        "adaptive",
        "Adaptive nodes make IG-ODAM more faithful.",
        "section 4.1",
        _faithful("adaptive_ig_odam", {"ig_odam": _OF_ADAPTIVE["ig_odam"]}),
    ),
    Claim(
        "best",
        "Adaptive IG-ODAM is the most faithful of the six methods.",
        "section 4.1",
        _faithful("adaptive_ig_odam", _OF_ADAPTIVE),
    ),
    Claim(
        "shape",
        "Adaptive nodes bring the map nearer to the object's shape (VEA).",
        "table 2",
        (Comparison("adaptive_ig_odam", "ig_odam", "vea@mask", 0.0528),),
    ),
    Claim(
        "place",
        "Adaptive nodes put more of the map on the object (EBPG).",
        "table 2",
        (Comparison("adaptive_ig_odam", "ig_odam", "ebpg@box", 0.1133),),
    ),
    Claim(
        "error",
        "Adaptive nodes come nearer to the integral than as many uniform ones.",
        "sections 3.2, 4.1",
        (Comparison("adaptive_ig_odam", "ig_odam", DISTANCE),),
    ),
    Claim(
        "tracking",
        "The matching follows one instance along the whole path: on most paths its box never jumps.",
        "section 3.1",
        (Comparison("ig_odam", 0.5, TRACKED),),
    ),
    Claim(
        "noise",
        "IG-ODAM's maps feel noise less than ODAM's.",
        "sections 1, 4.3",
        (Comparison("ig_odam", "odam", "max_sensitivity"),),
    ),
    Claim(
        "outline",
        "IG-ODAM follows the object's outline more exactly than the methods before it.",
        "section 4.3",
        tuple(Comparison("ig_odam", other, "vea@mask") for other in ("grad_cam", "grad_cam_pp", "d_rise", "odam")),
    ),
    Claim(
        "background",
        "Grad-CAM and Grad-CAM++ look at the background and at other objects more than IG-ODAM.",
        "section 4.3",
        tuple(
            Comparison("ig_odam", other, name)
            for other in ("grad_cam", "grad_cam_pp")
            for name in ("ebpg@box", "odi@mask")
        ),
    ),
    Claim(
        "spread",
        "Adaptive IG-ODAM's attention is the least spread, within the picture and over other instances.",
        "section 4.3",
        tuple(
            Comparison("adaptive_ig_odam", other, name)
            for other in ("odam", "ig_odam")
            for name in ("compactness", "odi@mask")
        ),
    ),
)
"""In the order of the paper's sections 4.1 to 4.3, with what they rest on."""


def beyond(methods: Iterable[str]) -> Claim | None:
    """Returns the paper's conclusion for methods that it did not compare with; None where there are none."""
    names = ("deletion", "insertion", "vea@mask", "ebpg@box")
    compared = tuple(Comparison("adaptive_ig_odam", method, name) for method in methods for name in names)
    text = "Adaptive IG-ODAM is better than methods that the paper did not compare with, in all four columns."
    return Claim("beyond", text, "section 5", compared) if compared else None


def values_of(*evaluations: Evaluation) -> Values:
    """Returns the values of evaluations of the same detections, by method and column; options of columns are left out.

    Where two have the same method and column the first one counts.
    """
    by_column: dict[tuple[str, str], Mapping[tuple[str, int], float]] = {}
    for evaluation in evaluations:
        keys = _numbered(row.sample for row in evaluation.rows)
        for method, name in evaluation.statistics:
            values = evaluation.values(method, name).tolist()
            by_column.setdefault((method, name.partition("(")[0]), dict(zip(keys, values, strict=True)))
    return by_column


def path_values(convergence: Convergence, nodes: int) -> Values:
    """Returns what is known of the paths as columns: `DISTANCE` at so many nodes, and `TRACKED` (1 or 0)."""
    place, keys = convergence.nodes.index(nodes), _numbered(convergence.images)
    by_column: dict[tuple[str, str], Mapping[tuple[str, int], float]] = {
        (name, DISTANCE): dict(zip(keys, convergence.errors[name][place].tolist(), strict=True)) for name in PATHS
    }
    by_column["ig_odam", TRACKED] = dict(zip(keys, convergence.tracked.tolist(), strict=True))
    return by_column


def _numbered(images: Iterable[str]) -> list[tuple[str, int]]:
    """Returns a key for every row: its image, and its number among that image's rows."""
    numbers = defaultdict[str, Iterator[int]](count)
    return [(image, next(numbers[image])) for image in images]


def judge(claim: Claim, values: Values, *, seed: int = 0) -> Judgement:
    """Judges a claim by the rules."""
    count = len(claim.comparisons)
    return Judgement(claim, tuple(_difference(comparison, values, count, seed) for comparison in claim.comparisons))


def _difference(comparison: Comparison, values: Values, comparisons: int, seed: int) -> Difference:
    """Returns the paired difference with its intervals, by resampling images."""
    here = values.get((comparison.better, comparison.column), {})
    there = comparison.worse
    others = dict.fromkeys(here, there) if isinstance(there, float) else values.get((there, comparison.column), {})
    sign = -1 if comparison.column.partition("@")[0] in LOWER else 1
    differences = {key: sign * (value - others[key]) for key, value in here.items() if key in others}
    by_image: dict[str, list[float]] = {}
    for (image, _), difference in differences.items():
        if math.isfinite(difference):
            by_image.setdefault(image, []).append(difference)
    if not by_image:
        return Difference(0, 0, math.nan, math.nan, math.nan, math.nan)
    sums = torch.tensor([sum(of) for of in by_image.values()], dtype=torch.float64)
    counts = torch.tensor([len(of) for of in by_image.values()], dtype=torch.float64)
    means = _resampled(sums, counts, seed)
    low, high, highest = means.quantile(means.new_tensor([0.025, 0.975, 1 - 0.025 / comparisons])).tolist()
    return Difference(len(sums), int(counts.sum()), float(sums.sum() / counts.sum()), low, high, highest)


def _resampled(sums: Tensor, counts: Tensor, seed: int) -> Tensor:
    """Returns the mean of the detections of as many images, drawn with replacement (RESAMPLES,)."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator)
    return sums[indices].sum(1) / counts[indices].sum(1)


def verdict_table(judgements: Mapping[str, Sequence[Judgement]]) -> Table:
    """Returns a row per claim: the verdict on each detector, and on all of them where they agree."""
    rows = []
    for of_claim in zip(*judgements.values(), strict=True):
        claim, verdicts = of_claim[0].claim, [judgement.verdict for judgement in of_claim]
        decided = [verdict for verdict in verdicts if verdict != "cannot be told"]
        every = verdicts[0] if len(set(verdicts)) == 1 else "cannot be told"
        every = "detectors differ" if len(set(decided)) > 1 else every
        rows.append([claim.text, claim.source, *verdicts, f"**{every}**"])
    return ["claim", "in the paper", *judgements, "together"], rows


def comparison_table(judgements: Sequence[Judgement]) -> Table:
    """Returns a row per comparison: the difference for the claim with its interval, the paper's, and the verdict."""
    rows = []
    for judgement in judgements:
        compared = zip(judgement.claim.comparisons, judgement.differences, judgement.verdicts, strict=True)
        for comparison, measured, verdict in compared:
            worse = comparison.worse if isinstance(comparison.worse, str) else f"{comparison.worse:g}"
            shown = bracketed(measured.mean, measured.low, measured.high, signed=True)
            paper = f"{comparison.gain:+.3f}" if comparison.gain else "-"
            sizes = f"{measured.detections} on {measured.images}"
            rows.append([judgement.claim.name, f"{comparison.better}, {worse}", comparison.column, shown, paper, sizes])
            rows[-1].append(verdict if measured.images else "not measured")
    return ["claim", "better, worse", "column", "difference", "paper", "detections on images", "verdict"], rows

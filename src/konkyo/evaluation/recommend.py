"""recommend(): which method to use for a model, by what is measured on one's own images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from konkyo.data.samples import Data, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.engine.forward import Precision
from konkyo.errors import KonkyoError, NotApplicable, silenced, unknown
from konkyo.evaluation import display
from konkyo.evaluation.columns import Column, column
from konkyo.evaluation.cost import FORWARD, operations_of
from konkyo.evaluation.evaluate import evaluate
from konkyo.evaluation.plan import RIGHT
from konkyo.evaluation.result import Evaluation, Table, bracketed, markdown
from konkyo.explanation.explain import Which
from konkyo.explanation.run import Where
from konkyo.methods.base import Method, find
from konkyo.models import Model, as_model
from konkyo.tasks.base import Explained, Matching
from konkyo.utils.files import write_text
from konkyo.utils.progress import Progress

CONTROL = "random_cam"
"""The layer's channels with random weights: a method that is not more faithful says nothing of the target."""
CRITERIA = ("faithfulness", "localisation", "stability")
STABILITY = ("map_stability(samples=3)",)
FEW = 10
"""With so many images or fewer, means that are resampled scatter less than they should."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Standing:
    """How a method stands among the others: 1 where it is the best for every image, 0 where it is the last."""

    value: float
    low: float
    """Of the 95 % interval, by resampling images."""
    high: float


@dataclass(frozen=True, eq=False)
class Recommendation:
    """Methods in the order in which they stand on one's own model and images, with what that was measured by."""

    evaluation: Evaluation
    """All values; of the methods and the control."""
    criteria: Mapping[str, tuple[str, ...]]
    """faithfulness, localisation and stability: the columns that each was measured by. None without columns."""
    weights: Mapping[str, float]
    costs: Mapping[str, float]
    """Forwards for one image (`konkyo.evaluation.cost.forwards`); NaN where it could not be counted."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why a method does not apply."""
    seed: int = 0

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The methods, the best first; the control is none of them."""
        names = [m for m in self.evaluation.methods if m != CONTROL]
        return tuple(sorted(names, key=lambda name: -self.overall(name).value))

    @cached_property
    def alike(self) -> tuple[str, ...]:
        """The methods whose overall standing is not told apart from the best one's, that one included."""
        best = self.methods[0]
        means = {name: self._resampled(self._per_image(name)) for name in self.methods}
        return tuple(n for n in self.methods if n == best or float((means[best] - means[n]).quantile(0.025)) <= 0)

    @cached_property
    def unfaithful(self) -> tuple[str, ...]:
        """The methods whose faithfulness is not above the control's: their maps may say nothing of the decision."""
        if "faithfulness" not in self.criteria:
            return ()
        control = self._resampled(self._per_image(CONTROL, "faithfulness"))
        standings = {name: self._resampled(self._per_image(name, "faithfulness")) for name in self.methods}
        return tuple(n for n in self.methods if not float((standings[n] - control).quantile(0.025)) > 0)

    @cached_property
    def choice(self) -> str:
        """The method to use: of those that are alike the best, and above the control, the one of the least cost.

        "" where none is above the control.
        """
        good = [name for name in self.alike if name not in self.unfaithful]
        good = good or [name for name in self.methods if name not in self.unfaithful]
        return min(good, key=lambda name: self.costs.get(name, math.inf)) if good else ""

    def standing(self, method: str, criterion: str) -> Standing:
        """Returns how a method stands by one criterion. KonkyoError: an unknown method or criterion."""
        if criterion not in self.criteria:
            raise unknown("criterion", criterion, list(self.criteria))
        return self._standing(self._per_image(self._known(method), criterion))

    def overall(self, method: str) -> Standing:
        """Returns how a method stands by all criteria, each by its weight. KonkyoError: an unknown method."""
        return self._standing(self._per_image(self._known(method)))

    def _known(self, method: str) -> str:
        if method not in self.evaluation.methods:
            raise unknown("method", method, self.evaluation.methods)
        return method

    def _standing(self, images: Tensor) -> Standing:
        means = self._resampled(images)
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
        alone = int((~images.isnan()).sum()) < 2
        return Standing(float(images.nanmean()), math.nan if alone else low, math.nan if alone else high)

    @cached_property
    def _places(self) -> Mapping[str, Tensor]:
        """(methods, images) of every criterion: the mean place over its columns and the image's maps, NaN without."""
        names, images = self.evaluation.methods, self.evaluation.images()
        number = int(images.max()) + 1
        standings = dict[str, Tensor]()
        for criterion, columns in self.criteria.items():
            sums = torch.zeros(len(names), number, dtype=torch.float64)
            counts = torch.zeros_like(sums)
            for name in columns:
                sign = 1 if self.evaluation.column(name).metric.better == "higher" else -1
                values = [
                    sign * self.evaluation.values(m, name)
                    if (m, name) in self.evaluation.statistics
                    else torch.full((len(images),), math.nan, dtype=torch.float64)
                    for m in names
                ]
                places = ranked(torch.stack(values))
                known = ~places.isnan()
                sums.index_add_(1, images, places.nan_to_num())
                counts.index_add_(1, images, known.double())
            standings[criterion] = sums / counts.where(counts > 0, math.nan)
        return standings

    def _per_image(self, method: str, criterion: str | None = None) -> Tensor:
        """Returns the places of a method (images,), by one criterion, or by all with their weights."""
        row = self.evaluation.methods.index(method)
        if criterion is not None:
            return self._places[criterion][row]
        places = torch.stack([of[row] for of in self._places.values()])
        weights = torch.tensor([self.weights[name] for name in self._places], dtype=torch.float64)
        known = weights @ (~places.isnan()).double()
        return weights @ places.nan_to_num() / known.where(known > 0, math.nan)

    def _resampled(self, images: Tensor) -> Tensor:
        """Returns means over resampled images (resamples,); the same images for every method and criterion."""
        generator = torch.Generator().manual_seed(self.seed)
        indices = torch.randint(len(images), (_RESAMPLES, len(images)), generator=generator)
        means = images[indices].nanmean(1)
        return means.nan_to_num(float(images.nanmean()))

    # --- shown --------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"Recommendation({self.choice or 'none'} of {len(self.methods)} methods on {self._count} images)"

    @property
    def _count(self) -> int:
        return int(self.evaluation.images().max()) + 1

    def _repr_html_(self) -> str:
        return display.html_of_recommendation(self)

    def sentence(self) -> str:
        """Returns what to use, and how sure that is."""
        count = self._count
        if not self.choice:
            return (
                f"No method is more faithful than channels with random weights ({CONTROL}) on these {count} images: "
                "none is recommended."
            )
        others = [name for name in self.alike if name != self.choice]
        sentence = f"Use {self.choice}: {_counted(self.costs.get(self.choice, math.nan))} forward(s) an image, overall "
        standing = self.overall(self.choice)
        sentence += f"standing {bracketed(standing.value, standing.low, standing.high)} on {count} images."
        if self.choice not in self.alike:
            sentence += (
                f" {', '.join(self.alike)} stand higher, and are not above the control {CONTROL} in faithfulness."
            )
            return sentence
        if others:
            sentence += f" Not told apart from the best on these: {', '.join(others)}; it costs the least of them."
        return sentence

    def table(self) -> Table:
        """Returns a row per method, the best first: standings with 95 % intervals, cost, and what is to be known."""
        head = ["method", "overall", *self.criteria, "forwards", ""]
        rows = []
        for name in (*self.methods, CONTROL):
            cells = [self.overall(name), *(self.standing(name, criterion) for criterion in self.criteria)]
            notes = [
                "recommended" if name == self.choice else "as good" if name in self.alike else "",
                "the control" if name == CONTROL else "not above the control" if name in self.unfaithful else "",
            ]
            rows.append(
                [
                    f"**{name}**" if name == self.choice else name,
                    *(bracketed(c.value, c.low, c.high) for c in cells),
                    _counted(self.costs.get(name, math.nan)),
                    ", ".join(note for note in notes if note),
                ]
            )
        return head, rows

    def remarks(self) -> list[str]:
        """Returns what the standings were made of, and what was left out."""
        parts = "; ".join(
            f"{name} ({self.weights[name]:g}): {', '.join(columns)}" for name, columns in self.criteria.items()
        )
        lines = [
            "A standing is the mean place among these methods, 1 the best and 0 the last, for every image and column, "
            f"a blank map last. Criteria with their weights and columns: {parts}."
        ]
        if self._count <= FEW:
            lines.append(
                f"On {FEW} images or fewer the intervals are too narrow: they hold the truth in 93 % of cases at ten, "
                "87 % at five. Take more images before you rely on the choice."
            )
        if "localisation" not in self.criteria:
            lines.append(f"Nothing was asked about localisation: {self._unasked}.")
        lines += self.refused.values()
        return lines

    @property
    def _unasked(self) -> str:
        """Why no standing is of localisation."""
        if not (columns := [c for c in self.evaluation.columns if criterion_of(c) == "localisation"]):
            return "none of the metrics looks at where objects are"
        if _of("localisation", columns, self.evaluation):
            return "its weight is 0"
        return "the data say nothing of where objects are"

    def save(self, folder: str | Path) -> Path:
        """Writes recommendation.md, and the evaluation as `Evaluation.save` does. -> the folder"""
        self.evaluation.save(folder)
        write_text(Path(folder) / "recommendation.md", self.markdown())
        return Path(folder)

    def markdown(self) -> str:
        """The text holds `sentence`, `table` and `remarks`."""
        return f"{self.sentence()}\n\n{markdown(self.table())}\n" + "\n".join(self.remarks()) + "\n"


def _counted(forwards: float) -> str:
    return "-" if math.isnan(forwards) else f"{forwards:.3g}"


def ranked(values: Tensor) -> Tensor:
    """Returns the place of every method for every map, from 0 (the last) to 1 (the best). (M, R) -> (M, R)

    The larger the better. Equal values share the mean of their places. NaN, a blank map, is last; a column of NaN alone
    has no places, and so has one method alone.
    """
    known = ~values.isnan()
    filled = values.nan_to_num(-math.inf, neginf=-math.inf, posinf=math.inf)
    below = (filled[:, None] > filled[None]).double().sum(1)
    same = (filled[:, None] == filled[None]).double().sum(1) - 1
    places = (below + same / 2) / max(len(values) - 1, 1)
    return places.where(known.any(0) & (len(values) > 1), math.nan)


def recommend(
    model: Model | nn.Module,
    data: str | Path | Data | Scenes | Samples,
    methods: Sequence[Which] | None = None,
    metrics: Sequence[str] | None = None,
    *,
    criteria: Mapping[str, float] | None = None,
    explained: Explained = "decision",
    matching: Matching = RIGHT,
    limit: int | None = 50,
    seed: int = 0,
    precision: Precision | None = None,
    layer: Where = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Recommendation:
    """Ranks methods on one's own model and images, by faithfulness, localisation, stability and cost.

    `methods`: names; None: the usual ones of the model's task. `random_cam`, channels with random weights, is measured
    beside them as a control. `metrics`: columns as of `evaluate`; None: those of the task, and `map_stability` with
    three noisy copies. They belong to localisation where they need masks or boxes, to stability where they explain
    changed images, and to faithfulness else. `criteria`: their weights (1, 1 and 0.5), 0 for none.

    Every metric makes a place for every map among those of the other methods, from 0 to 1; a criterion is the mean over
    its columns, and the overall standing the weighted mean over criteria, with 95 % intervals by resampling images. So
    no unit of any metric weighs more than another's. Recommended is, of the methods that are not told apart from the
    best and are more faithful than the control, the one that costs the fewest forwards.

    The rest is as of `evaluate`, which measures; `limit` is 50 images. KonkyoError: as of `evaluate`; metrics of which
    none says which method is better; a weight that is no criterion's; NotApplicable: no method applies.
    """
    adapted = as_model(model)
    chosen = [find(m) for m in (adapted.task.methods if methods is None else methods)]
    names = (*adapted.task.columns, *STABILITY) if metrics is None else tuple(metrics)
    shares = {"faithfulness": 1.0, "localisation": 1.0, "stability": 0.5} | _checked(criteria)
    source = samples(data, limit=limit, seed=seed)
    columns = [c for c in map(column, names) if _ranks(c)]
    if not columns:
        raise KonkyoError(f"none of {', '.join(names)} says of every map how faithful, well placed or stable it is")
    costs, refused = _costs(adapted, source, [*chosen, find(CONTROL)], layer)
    applicable = [m for m in chosen if m.name not in refused and m.name != CONTROL]
    if not applicable:
        raise NotApplicable(f"no method applies: {'; '.join(refused.values())}")
    if CONTROL in refused:
        raise NotApplicable(f"there is no control to compare with: {refused[CONTROL]}")
    result = evaluate(
        adapted,
        source,
        [*applicable, find(CONTROL)],
        [c.name for c in columns],
        explained=explained,
        matching=matching,
        seed=seed,
        precision=precision,
        layer=layer,
        out=out,
        progress=progress,
    )
    measured = {name: of for name in CRITERIA if shares[name] and (of := _of(name, columns, result))}
    if not measured:
        raise KonkyoError(
            f"nothing was measured that ranks methods: of {', '.join(names)} none has a value on these images"
        )
    return Recommendation(result, measured, {name: shares[name] for name in measured}, costs, refused, seed)


def _ranks(of: Column) -> bool:
    """Tells whether a column says of every map how good it is, by one of the criteria."""
    return of.metric.better != "neither" and of.metric.pooled is None and criterion_of(of) != ""


def _checked(criteria: Mapping[str, float] | None) -> dict[str, float]:
    for name, value in (criteria or {}).items():
        if name not in CRITERIA:
            raise unknown("criterion", name, CRITERIA)
        if not 0 <= value < math.inf:
            raise KonkyoError(f"the weight of {name}: a number from 0 on was expected; got {value}")
    return dict(criteria or {})


def criterion_of(of: Column) -> str:
    """Returns the criterion that a column belongs to, by what its metric needs; "" of one that only looks at maps.

    Localisation where maps are held against masks or boxes; else faithfulness where changed images are scored, and
    stability where they are explained.
    """
    needs = of.metric.needs
    if of.region is not None or "boxes" in needs:
        return "localisation"
    return "faithfulness" if "score" in needs else "stability" if "explain" in needs else ""


def _of(criterion: str, columns: Sequence[Column], result: Evaluation) -> tuple[str, ...]:
    """Returns the columns of a criterion that have a value somewhere."""
    return tuple(
        c.name
        for c in columns
        if criterion_of(c) == criterion
        and any(not result.values(m, c.name).isnan().all() for m in result.measured(c.name))
    )


def _costs(
    model: Model, source: Samples, methods: Sequence[Method], layer: Where
) -> tuple[dict[str, float], dict[str, str]]:
    """Counts the forwards of every method on the first image that has anything to explain, and why one has none."""
    costs, refused = dict[str, float](), dict[str, str]()
    forward = dict[int, int]()
    for m in methods:
        where = layer if m.layer is None and m.needs_layer() else None
        for index in range(min(len(source), 8)):
            sample = source[index]
            prompted = model.prompted(question=sample.question)
            try:
                with silenced():
                    operations = operations_of(prompted, [sample], m, layer=where)
                    if index not in forward:
                        forward[index] = operations_of(prompted, [sample], FORWARD)
                costs[m.name] = operations / forward[index]
            except NotApplicable as error:
                refused[m.name] = str(error)
            except KonkyoError:
                continue  # nothing was found on it
            break
    return costs, refused

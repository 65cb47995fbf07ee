"""`MapMetric`: any metric of maps as a `torchmetrics.Metric`, for training loops and data sets in shards."""

from __future__ import annotations

from typing import Any

import torch
import torchmetrics
from torch import Tensor

from konkyo.errors import unknown
from konkyo.metrics.base import Metric, OfMean, metrics
from konkyo.utils.registry import check_options


class MapMetric(torchmetrics.Metric):
    """This is the value of a metric over a data set, map by map: `MapMetric("pointing_game", tolerance=15)`.

    `update` takes what the metric is called with, and ignores needs of other metrics: a `MetricCollection` can give all
    of its metrics the same. Maps whose value is not defined are left out and counted in `undefined`. A sum and counts
    are stored. A metric whose value is of all maps together, not of their mean, stores every map's statistic, and needs
    maps in every process. KonkyoError: an unknown metric or option.
    """

    full_state_update = False
    is_differentiable = False
    count: Tensor
    """How many maps have a value."""
    undefined: Tensor
    """How many maps have none."""

    def __init__(self, name: str, **options: Any) -> None:
        """Takes the name and the options of a metric. KonkyoError: an unknown one."""
        super().__init__()
        if name not in metrics():
            raise unknown("metric", name, metrics())
        check_options(f"metric {name}", options, metrics()[name].options)
        self.name, self.options = name, options
        # MetricCollection takes metrics whose states have equal names and, after one batch, equal values for one.
        self._state_name = f"kept of {name} {sorted(options.items())}"
        self._adds_up = self.metric.pooled is None or isinstance(self.metric.pooled, OfMean)
        self.add_state(self._state_name, self._nothing() if self._adds_up else [], "sum" if self._adds_up else "cat")
        self.add_state("count", torch.tensor(0), "sum")
        self.add_state("undefined", torch.tensor(0), "sum")

    @property
    def metric(self) -> Metric:
        """This is the metric itself."""
        return metrics()[self.name]

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """Tells whether a higher value is better; None where neither is."""
        return {"higher": True, "lower": False}.get(self.metric.better)

    def update(self, maps: Tensor, **arguments: Any) -> None:
        """Adds maps (R, H, W) and what the metric needs to know of them, by name."""
        values = self.metric.statistic(maps, **arguments, **self.options)
        values = self.metric.summarised(values) if self.metric.pooled is None else values
        missing = values[..., None].flatten(1).isnan().any(1)
        state = getattr(self, self._state_name)
        if self._adds_up:
            setattr(self, self._state_name, state + values[~missing].sum(0))
        else:
            state.append(values)
        self.count = self.count + (~missing).sum()
        self.undefined = self.undefined + missing.sum()

    def compute(self) -> Tensor:
        """Returns the value over all maps so far; NaN where none is defined."""
        state, pooled = getattr(self, self._state_name), self.metric.pooled
        if not self._adds_up:
            state = torch.cat(state) if isinstance(state, list) and state else state
            return self.metric.over(state) if len(state) else torch.tensor(torch.nan, device=self.device)
        mean: Tensor = state / self.count
        return pooled.value(mean) if isinstance(pooled, OfMean) else mean

    def _nothing(self) -> Tensor:
        """Returns the sum of no statistics: zeros in the shape that the options give them."""
        if self.metric.pooled is None:
            return torch.zeros(())
        none, region = torch.zeros(0, 1, 1), torch.zeros(0, 1, 1, dtype=torch.bool)
        offer = {"masks": region, "others": region, "boxes": torch.zeros(0, 4), "objects": torch.zeros(0).long()}
        needed = {need: offer[need] for need in self.metric.needs if need in offer}
        return self.metric.statistic(none, **needed, **self.options).sum(0)

"""Columns of a table of metrics: a metric, the region of truth that it looks at, and its options, in one name."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from konkyo.errors import KonkyoError, unknown
from konkyo.metrics import METRICS, Metric
from konkyo.utils.registry import check_options

Region: TypeAlias = Literal["box", "mask", "evidence", "explained"]
"""What a map is held against: an object's box, its outline, the part that alone decides its class, or the region of a
dense output that is explained itself."""
Budget: TypeAlias = Literal["box", "image"]
"""How many pixels are changed: as many as the object's box has, or the image."""


@dataclass(frozen=True)
class Column:
    """A column is a metric with its options, held against a region of the truth."""

    metric: Metric
    region: Region | None
    """None: it asks for none."""
    budget: Budget
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As `column` reads it, as in "ebpg@box" or "deletion(protocol=seed)"."""
        options_shown = dict(self.options) | ({"budget": self.budget} if self._asks_otherwise else {})
        options = ",".join(f"{k}={v}" for k, v in options_shown.items())
        return self.metric.name + (f"@{self.region}" if self.region else "") + (f"({options})" if options else "")

    @property
    def _asks_otherwise(self) -> bool:
        return "budget" in self.metric.needs and self.budget != _usual_budget(self.options)


def column(text: str) -> Column:
    """Reads the column NAME, NAME@REGION or NAME@REGION(option=value,...). KonkyoError with what is on offer otherwise.

    `REGION`: mask (what a metric of objects looks at by default), box, evidence or explained. Besides its metric's, a
    column of deletion or insertion has the option budget=box or image (default: box in the protocols of detectors).

    >>> column("ebpg@box").name, column("deletion(protocol=seed)").budget
    ('ebpg@box', 'box')
    """
    parts = re.fullmatch(r"\s*(\w+)(?:@(\w+))?(?:\((.*)\))?\s*", text)
    if parts is None or parts[1] not in METRICS:
        raise unknown("metric", text, METRICS)
    metric, region = METRICS[parts[1]], parts[2]
    options = dict(_option(text, pair) for pair in (parts[3] or "").split(",") if pair.strip())
    regional = "masks" in metric.needs
    if region is not None and not regional:
        raise KonkyoError(f"{metric.name} does not look at a region of the truth; got {text!r}")
    if region is not None and region not in get_args(Region):
        raise unknown("region", region, get_args(Region))
    usual = _usual_budget(options)
    budget = options.pop("budget", usual) if "budget" in metric.needs else usual
    if budget not in get_args(Budget):
        raise unknown("budget", budget, get_args(Budget))
    check_options(f"metric {metric.name}", options, metric.options)
    return Column(metric, (region or "mask") if regional else None, budget, options)  # type: ignore[arg-type]


def _usual_budget(options: Mapping[str, Any]) -> Budget:
    return "box" if options.get("protocol") in ("odam", "seed") else "image"


def _option(text: str, pair: str) -> tuple[str, Any]:
    name, equals, value = pair.partition("=")
    if not equals:
        raise KonkyoError(f"options of a metric are name=value; got {pair!r} in {text!r}")
    try:
        return name.strip(), ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        return name.strip(), value.strip()

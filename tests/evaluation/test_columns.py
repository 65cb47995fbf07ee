"""Columns of an evaluation: a metric, its options and its region, read from text and written as text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konkyo.errors import KonkyoError
from konkyo.evaluation.columns import column
from konkyo.metrics import METRICS, metrics


@given(st.sampled_from(sorted(metrics())), st.sampled_from(["", "@mask", "@box", "@evidence"]))
def test_a_column_has_the_name_that_it_is_read_from(name: str, region: str) -> None:
    if "masks" not in METRICS[name].needs:
        found = column(name)
        assert (found.name, found.region) == (name, None)
        if region:
            with pytest.raises(KonkyoError, match="does not look at a region"):
                column(name + region)
        return
    found = column(name + region)
    assert found.metric is METRICS[name]
    assert found.name == name + (region or "@mask")
    assert column(found.name) == found


@pytest.mark.parametrize(
    ("text", "options", "budget", "name"),
    [
        ("deletion", {}, "image", "deletion"),
        ("deletion(steps=4)", {"steps": 4}, "image", "deletion(steps=4)"),
        ("deletion(protocol=seed)", {"protocol": "seed"}, "box", "deletion(protocol=seed)"),
        ("insertion(protocol=odam, every=5)", {"protocol": "odam", "every": 5}, "box", None),
        ("insertion(protocol='rise',budget=box)", {"protocol": "rise"}, "box", "insertion(protocol=rise,budget=box)"),
        ("deletion(budget=image,protocol=seed)", {"protocol": "seed"}, "image", None),
        ("deletion(budget=box,protocol=seed)", {"protocol": "seed"}, "box", "deletion(protocol=seed)"),
        (" pointing_game@box(tolerance=2.5) ", {"tolerance": 2.5}, "image", "pointing_game@box(tolerance=2.5)"),
        ("deletion(normalise=True,substrate=None)", {"normalise": True, "substrate": None}, "image", None),
    ],
)
def test_options_are_read_and_written(text: str, options: dict[str, Any], budget: str, name: str | None) -> None:
    found = column(text)
    assert (dict(found.options), found.budget) == (options, budget)
    assert name is None or found.name == name
    again = column(found.name)
    assert (dict(again.options), again.budget, again.name) == (options, budget, found.name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("delition", "deletion"),
        ("", "unknown metric"),
        ("ebpg@box extra", "unknown metric"),
        ("ebpg@head", "On offer: box, mask, evidence"),
        ("deletion@box", "does not look at a region"),
        ("sparseness@mask", "does not look at a region"),
        ("ebpg(steps=3)", "option of metric ebpg"),
        ("deletion(steps=many)", "steps of metric deletion is of type int"),
        ("deletion(protocol=rice)", "'rise', 'odam', 'seed'"),
        ("deletion(steps)", "name=value"),
        ("deletion(budget=bocks)", "On offer: box, image"),
        ("ebpg(budget=box)", "budget"),  # of deletion and insertion only
        ("road(budget=image)", "budget"),
    ],
)
def test_columns_that_mean_nothing_are_refused(text: str, said: str) -> None:
    with pytest.raises(KonkyoError) as told:
        column(text)
    assert said in str(told.value)

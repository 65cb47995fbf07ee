"""recommend() and the cost of methods: places, intervals and the choice by hand, and operations by their formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.evaluation_inputs import pictures
from helpers.unregistered import made
from konkyo.apps.cli.options import numbers_by_name
from konkyo.errors import KonkyoError
from konkyo.evaluation.columns import column
from konkyo.evaluation.cost import Operations, forwards
from konkyo.evaluation.recommend import CONTROL, Recommendation, criterion_of, ranked, recommend
from konkyo.evaluation.result import Evaluation, Row

QUICK = ["deletion(steps=8)", "insertion(steps=8)", "ebpg@mask"]


# --- cost -------------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Linear(6, 5),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images).relu()).relu().mean((2, 3)))


FIRST, SECOND, HEAD = 3 * 9 * 4 * 64, 4 * 9 * 6 * 64, 6 * 5
FORWARD = FIRST + SECOND + HEAD


def test_operations_are_the_multiplications() -> None:
    with Operations() as operations, torch.no_grad():
        Small()(torch.rand(2, 3, 8, 8))
    assert operations.count == 2 * FORWARD


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("edge_map", 1.0),
        ("grad_cam", 1 + HEAD / FORWARD),
        ("saliency", 2.0),
        ("integrated_gradients", 1 + 2 * 50),
        ("rise", 1 + 40),
    ],
)
def test_costs_are_those_of_the_formula(method: str, expected: float) -> None:
    """A forward; back to the last layer; back to the pixels; as often as there are steps; as many masks."""
    model = konkyo.Model(Small().eval(), None, list("abcde"))
    options = {"rise": {"masks": 40}}.get(method, {})
    assert forwards(model, torch.rand(1, 3, 8, 8), method, **options) == pytest.approx(expected, rel=0.02)


def test_attention_is_counted() -> None:
    with Operations() as operations, torch.no_grad():
        torch.nn.functional.scaled_dot_product_attention(*torch.rand(3, 1, 2, 10, 8))
    assert operations.count == 2 * (2 * 10 * 10 * 8)


# --- places -----------------------------------------------------------------------------------------------------------


def test_places_by_hand() -> None:
    nan = math.nan
    values = torch.tensor([[3.0, 1.0, nan, nan], [2.0, 1.0, 5.0, nan], [1.0, 0.0, -math.inf, nan]])
    expected = [[1.0, 0.75, 0.25, nan], [0.5, 0.75, 1.0, nan], [0.0, 0.0, 0.25, nan]]
    assert np.array_equal(ranked(values).numpy(), np.array(expected), equal_nan=True)
    assert ranked(values[:1]).isnan().all()


def result(values: dict[str, dict[str, list[float]]], **how: object) -> Recommendation:
    """Of methods and columns with a value per image."""
    columns = tuple(map(column, next(iter(values.values()))))
    count = len(next(iter(next(iter(values.values())).values())))
    # Curves that stay at the value, of the metrics whose value is the area under one.
    statistics = {
        (m, c): torch.tensor(v).double() if "@" in c else torch.tensor(v).double()[:, None].expand(-1, 2)
        for m, of in values.items()
        for c, v in of.items()
    }
    rows = tuple(Row(f"i{i}", "fox", 0.9) for i in range(count))
    evaluation = Evaluation(tuple(values), columns, rows, statistics, dict.fromkeys(values, 0))
    criteria: dict[str, tuple[str, ...]] = {}
    for c in columns:
        criteria[criterion_of(c)] = (*criteria.get(criterion_of(c), ()), c.name)
    given = {"weights": dict.fromkeys(criteria, 1.0), "costs": dict.fromkeys(values, 1.0)} | how
    return Recommendation(evaluation, criteria, **given)  # type: ignore[arg-type]


def test_standings_are_weighted_means_of_places() -> None:
    found = result(
        {
            "a": {"insertion": [0.9, 0.8], "ebpg@mask": [0.1, 0.2]},
            "b": {"insertion": [0.5, 0.5], "ebpg@mask": [0.9, 0.1]},
            CONTROL: {"insertion": [0.1, 0.6], "ebpg@mask": [0.5, 0.3]},
        },
        weights={"faithfulness": 2.0, "localisation": 1.0},
    )
    assert found.standing("a", "faithfulness").value == 1.0
    assert found.standing("b", "faithfulness").value == pytest.approx((0.5 + 0) / 2)
    assert found.standing("a", "localisation").value == pytest.approx((0 + 0.5) / 2)
    assert found.overall("a").value == pytest.approx((2 * 1 + 0.25) / 3)
    assert found.overall("b").value == pytest.approx((2 * 0.25 + 0.5) / 3)
    assert found.methods == ("a", "b")  # the control is not on offer
    assert found.standing("a", "faithfulness").low == found.standing("a", "faithfulness").high == 1.0
    head, rows = found.table()
    assert head == ["method", "overall", "faithfulness", "localisation", "forwards", ""]
    assert [row[0] for row in rows] == ["**a**", "b", CONTROL]


def test_a_lower_column_is_turned() -> None:
    found = result({"a": {"deletion": [0.1] * 3}, "b": {"deletion": [0.4] * 3}, CONTROL: {"deletion": [0.9] * 3}})
    assert found.methods == ("a", "b")
    assert found.choice == "a"
    assert found.unfaithful == ()


def test_of_those_alike_the_cheapest_is_chosen() -> None:
    """Two take turns in being best: a coin decides which is first, and the cost which is chosen."""
    ones = [0.9, 0.8] * 10
    found = result(
        {"a": {"insertion": ones}, "b": {"insertion": ones[::-1]}, CONTROL: {"insertion": [0.0] * 20}},
        costs={"a": 100.0, "b": 2.0},
    )
    assert set(found.alike) == {"a", "b"}
    assert found.choice == "b"
    assert "Not told apart from the best on these: a" in found.sentence()
    clear = result(
        {"a": {"insertion": [0.9] * 20}, "b": {"insertion": [0.5] * 20}, CONTROL: {"insertion": [0.0] * 20}},
        costs={"a": 100.0, "b": 2.0},
    )
    assert (clear.alike, clear.choice) == (("a",), "a")


def test_nothing_is_recommended_that_random_weights_do_as_well() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = [torch.rand(30, generator=draw).tolist() for _ in range(3)]
    found = result({m: {"insertion": v} for m, v in zip(("a", "b", CONTROL), noise, strict=True)})
    assert found.unfaithful == found.methods
    assert found.choice == ""
    assert "none is recommended" in found.sentence()


def test_a_method_that_only_localises_is_passed_over() -> None:
    found = result(
        {
            "a": {"insertion": [0.9] * 8, "ebpg@mask": [0.2] * 8},
            "b": {"insertion": [0.1] * 8, "ebpg@mask": [0.9] * 8},
            CONTROL: {"insertion": [0.5] * 8, "ebpg@mask": [0.1] * 8},
        },
        weights={"faithfulness": 0.1, "localisation": 1.0},
    )
    assert found.methods[0] == "b"
    assert found.choice == "a"
    assert "are not above the control" in found.sentence()


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("ebpg@mask", [0.2], "its weight is 0"),
        ("ebpg@mask", [math.nan], "the data say nothing of where objects are"),
        ("deletion", [0.2], "none of the metrics looks at where objects are"),
    ],
)
def test_why_localisation_was_not_asked(column: str, values: list[float], why: str) -> None:
    found = result({m: {"insertion": [0.9], column: values} for m in ("a", CONTROL)})
    left = replace(found, criteria={"faithfulness": ("insertion",)}, weights={"faithfulness": 1.0})
    assert left.remarks()[-1] == f"Nothing was asked about localisation: {why}."


@pytest.mark.parametrize(("count", "warned"), [(10, True), (11, False)])
def test_few_images_are_told(count: int, warned: bool) -> None:
    found = result({m: {"insertion": [0.9] * count} for m in ("a", CONTROL)})
    assert any("too narrow" in line for line in found.remarks()) is warned


def test_a_blank_map_is_last() -> None:
    found = result(
        {"a": {"insertion": [0.9, math.nan]}, "b": {"insertion": [0.5, 0.5]}, CONTROL: {"insertion": [0.1, 0.1]}}
    )
    assert found.overall("a").value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        *(("deletion", "faithfulness"), ("infidelity", "faithfulness"), ("road", "faithfulness")),
        *(("ebpg@box", "localisation"), ("pointing_game", "localisation"), ("compactness", "localisation")),
        *(("map_stability", "stability"), ("max_sensitivity", "stability"), ("sparseness", "")),
    ],
)
def test_criteria(name: str, criterion: str) -> None:
    assert criterion_of(column(name)) == criterion


# --- on a model -------------------------------------------------------------------------------------------------------


def test_the_method_that_finds_the_evidence_is_recommended(model: konkyo.Model) -> None:
    """The model's classes are colours: its own channel of the colour is the evidence, and its negative the opposite."""

    def opposite(inputs: Tensor) -> Tensor:
        return -inputs[:, 0]

    found = recommend(model, pictures(4), ["grad_cam", made(opposite, name="opposite")], QUICK)
    assert found.choice == "grad_cam"
    assert "opposite" in found.unfaithful
    assert found.criteria == {
        "faithfulness": ("deletion(steps=8)", "insertion(steps=8)"),
        "localisation": ("ebpg@mask",),
    }
    assert found.costs["grad_cam"] == pytest.approx(1.0, abs=0.05)
    assert found.sentence().startswith("Use grad_cam: ")


def test_what_does_not_apply_is_told_and_left_out(model: konkyo.Model) -> None:
    def nowhere(inputs: Tensor) -> Tensor:
        raise konkyo.errors.NotApplicable("there is no place for it")

    found = recommend(model, pictures(3), ["grad_cam", made(nowhere)], QUICK[:1])
    assert found.methods == ("grad_cam",)
    assert "nowhere: there is no place for it" in found.remarks()
    with pytest.raises(konkyo.errors.NotApplicable, match="no method applies"):
        recommend(model, pictures(3), [made(nowhere)], QUICK[:1])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"criteria": {"beauty": 1}}, "beauty"),
        ({"criteria": {"stability": -1}}, "from 0 on"),
        ({"metrics": ["sparseness"]}, "how faithful"),
        ({"criteria": {"faithfulness": 0}, "metrics": ["deletion(steps=4)"]}, "nothing was measured"),
    ],
)
def test_what_ranks_nothing_is_refused(model: konkyo.Model, how: dict[str, object], said: str) -> None:
    with pytest.raises(KonkyoError, match=said):
        recommend(model, pictures(2), ["grad_cam"], **{"metrics": QUICK[:1], **how})  # type: ignore[arg-type]


def test_weights_on_the_command_line() -> None:
    weights = numbers_by_name("--criteria", "localisation=2, stability=0", "stability=0")
    assert weights == {"localisation": 2.0, "stability": 0.0}
    with pytest.raises(KonkyoError, match="--criteria takes NAME=NUMBER, as in stability=0; got 'localisation'"):
        numbers_by_name("--criteria", "localisation", "stability=0")

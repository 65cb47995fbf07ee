"""Evaluations, consistencies, sanity tests and models show themselves in a line and in a notebook."""

from __future__ import annotations

import html5lib
import numpy as np
import pytest
import torch

import konkyo
from helpers.networks import SmallResNet, seeded

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
CLASSES = ("<b>cat</b>", "dog", "fox", "owl", "bee")


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    return konkyo.Model(seeded(SmallResNet(), double=False), konkyo.Preprocess(40, 32), CLASSES, "small")


@pytest.fixture(scope="module")
def evaluation(model: konkyo.Model) -> konkyo.Evaluation:
    methods, metrics = ["grad_cam", "layer_cam"], ["insertion", "deletion"]
    return konkyo.evaluate(model, "scenes:6,objects=1", methods=methods, metrics=metrics)


def words(html: str) -> str:
    page = html5lib.HTMLParser(namespaceHTMLElements=False).parse(html)
    assert page.findall(".//script") == []
    assert len(html) < 300_000
    return "".join(page.itertext())


def test_a_model_is_shown_without_and_with_its_layer() -> None:
    model = konkyo.Model(seeded(SmallResNet(), double=False), konkyo.Preprocess(40, 32), CLASSES, "small")
    before = model.module.training
    assert repr(model) == "Model(small, classifier, 5 classes, 32x32, cpu)"  # nothing is run for a repr
    said = words(model._repr_html_())
    assert "<b>cat</b>" in said
    assert "automatic layerstage3" in said
    assert repr(model) == "Model(small, classifier, 5 classes, 32x32, stage3, cpu)"
    assert model.module.training == before
    bare = konkyo.Model(torch.nn.Flatten())
    assert repr(bare) == "Model(Flatten, classifier, classes without names, cpu)"
    assert "which no preprocessing says" in words(bare._repr_html_())


def test_an_evaluation_is_shown(evaluation: konkyo.Evaluation) -> None:
    best = evaluation.best("insertion")
    value = evaluation.cell(best, "insertion").value
    line = repr(evaluation)
    assert line == f"Evaluation(2 methods x 2 metrics on 6 maps; best insertion: {best} {value:.2f})"
    html = evaluation._repr_html_()
    assert f"<b>{value:.3f}</b>" in html
    assert "Maps in the comparison" in words(html)


def test_an_evaluation_is_plotted(evaluation: konkyo.Evaluation) -> None:
    figure = evaluation.plot()
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["insertion ↑ (n = 6)", "deletion ↓ (n = 6)"]
    cell = evaluation.cell("layer_cam", "insertion")
    interval, point = figure.axes[0].lines[2:4]
    np.testing.assert_allclose(interval.get_xdata(), [cell.low, cell.high])
    assert point.get_xdata() == [cell.value]
    assert len(evaluation.plot("insertion").axes) == 2  # the curves, too
    with pytest.raises(konkyo.KonkyoError, match="did you mean"):
        evaluation.plot("insrtion")


def test_an_evaluation_becomes_tables(evaluation: konkyo.Evaluation) -> None:
    table = evaluation.to_frame()
    row = table[(table.method == "grad_cam") & (table.metric == "deletion")].iloc[0]
    assert row["value"] == evaluation.cell("grad_cam", "deletion").value
    per_map = evaluation.to_frame(maps=True)
    assert len(per_map) == 2 * 2 * 6


def test_consistency_and_sanity_are_shown(model: konkyo.Model) -> None:
    names = konkyo.load("konkyo/scenes-classifier").classes
    ten = konkyo.Model(seeded(SmallResNet(10), double=False), konkyo.Preprocess(40, 32), names)
    result = konkyo.consistency(ten, "scenes:30,objects=1", only_correct=False, resamples=50)
    assert repr(result).startswith("Consistency(L ")
    assert len(repr(result)) <= 120
    html = result._repr_html_()
    assert "Consistency is not correctness" in words(html)
    assert html.count("<img") == 1
    assert len(result.to_frame()) == 30
    sanity = konkyo.randomisation(model, torch.rand(2, 3, 32, 32), steps=2)
    assert repr(sanity).startswith(f"Sanity(cascading: {'passed' if sanity.passed else 'FAILED'}; ")
    assert sanity.verdict in words(sanity._repr_html_())

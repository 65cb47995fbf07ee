"""Probabilities inside the network, and targets that an output has not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from konkyo.tasks import ClassificationTask

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NAMES = ("healthy", "ill")
LOGITS_TOO: dict[str, Any] = {"grad_cam": {}, "eigen_cam": {"target": konkyo.TopK(1)}, "rise": {"masks": 20}}
"""Methods with and without a graph."""


class Ends(nn.Module):
    """A small classifier whose logits go through `end`."""

    def __init__(self, end: Callable[[Tensor], Tensor], outputs: int = 1, bias: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.fc, self.end = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, outputs), end
        with torch.no_grad():
            self.fc.bias[0] = bias

    def logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(x).relu().mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.logits(x))


def explained(network: nn.Module, method: str = "grad_cam", **settings: Any) -> tuple[konkyo.Explanation, list[str]]:
    """The explanation of a model with these settings, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = LOGITS_TOO.get(method, {})
        result = konkyo.explain(konkyo.Model(network.eval(), **settings), IMAGES, method=method, **options)
    messages = [str(w.message) for w in caught if issubclass(w.category, konkyo.KonkyoWarning)]
    return result, [message for message in messages if "ReLU" not in message]


ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "module": nn.Sigmoid(),
    "by hand": lambda z: 1 / (1 + torch.exp(-z)),
    "hard": functional.hardsigmoid,
    "tanh": lambda z: (z.tanh() + 1) / 2,
    "clamped": lambda z: z.sigmoid().clamp(1e-4, 1 - 1e-4),
    "half": lambda z: z.half().sigmoid(),
    "no gradient": torch.no_grad()(torch.sigmoid),
    "column": lambda z: torch.cat([-z, z], 1).softmax(1)[:, 1:],
}


@pytest.mark.parametrize("bias", [-1.5, 1.5])
@pytest.mark.parametrize("method", LOGITS_TOO)
@pytest.mark.parametrize("end", ONE.values(), ids=ONE)
def test_one_probability_decides_at_a_half_and_is_warned_of(
    end: Callable[[Tensor], Tensor], method: str, bias: float
) -> None:
    network = Ends(end, bias=bias)
    result, messages = explained(network, method, classes=NAMES)
    assert result.labels == (NAMES[bias > 0],) * 2
    sentence = next(message for message in messages if "probabilities=True" in message)
    assert "probabilities=False" in sentence
    assert sentence in result.assumptions


@pytest.mark.parametrize("method", LOGITS_TOO)
@pytest.mark.parametrize("bias", [0.4, -3.0])
def test_a_logit_between_0_and_1_is_no_probability(method: str, bias: float) -> None:
    network = Ends(lambda z: z, bias=bias)
    assert not ((network.logits(IMAGES) < 0) | (network.logits(IMAGES) > 1)).any() or bias < 0
    result, messages = explained(network, method, classes=NAMES)
    assert result.labels == (NAMES[bias > 0],) * 2
    assert (messages, result.assumptions) == ([], ())


SEVERAL: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "softmax": (lambda z: z.softmax(1), True),
    "sigmoids": (torch.sigmoid, True),
    "softmax by hand": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), True),
    "exponential of a log softmax": (lambda z: z.log_softmax(1).exp(), True),
    "both sides": (lambda z: torch.cat([1 - z[:, :1].sigmoid(), z[:, :1].sigmoid()], 1), True),
    "ensemble": (lambda z: torch.stack([z.softmax(1), (2 * z).softmax(1)]).mean(0), True),
    "shares": (lambda z: functional.normalize(z.abs(), p=1, dim=1), True),
    "log softmax": (lambda z: z.log_softmax(1), False),
    "logits in [0, 1]": (lambda z: z * 1e-3 + 0.4, False),
    "gated": (lambda z: z * z.sigmoid(), False),
    "cosines": (lambda z: 10 * functional.normalize(z), False),
}


@pytest.mark.parametrize("method", LOGITS_TOO)
@pytest.mark.parametrize(("end", "told"), SEVERAL.values(), ids=SEVERAL)
def test_several_probabilities_are_warned_of_and_logits_are_not(
    end: Callable[[Tensor], Tensor], told: bool, method: str
) -> None:
    network = Ends(end, 4)
    result, messages = explained(network, method)
    assert bool(messages) == told == bool(result.assumptions)
    assert [target.class_index for target in result.targets] == network(IMAGES).argmax(1).tolist()


def test_one_warning_for_all_methods() -> None:
    model = konkyo.Model(Ends(torch.sigmoid).eval(), classes=NAMES)
    with pytest.warns(konkyo.KonkyoWarning) as caught:
        konkyo.compare(model, IMAGES, ("hires_cam", "eigen_cam", "saliency"))
    assert sum("probabilities=True" in str(warning.message) for warning in caught) == 1


def test_probabilities_of_a_target_of_ones_own_are_its_own_business() -> None:
    model = konkyo.Model(Ends(torch.sigmoid).eval())
    assert konkyo.explain(model, IMAGES, method="hires_cam", target=lambda o: o[:, 0]).assumptions == ()


@pytest.mark.parametrize("method", ["hires_cam", "saliency"])
@pytest.mark.parametrize(("outputs", "end", "multilabel"), [(1, torch.sigmoid, False), (4, torch.sigmoid, True)])
def test_with_probabilities_a_sigmoid_is_explained_as_its_logit(
    outputs: int, end: Callable[[Tensor], Tensor], multilabel: bool, method: str
) -> None:
    network, plain = Ends(end, outputs, -2.0).double(), Ends(lambda z: z, outputs, -2.0).double()
    settings: dict[str, Any] = {"multilabel": multilabel}
    told = konkyo.explain(konkyo.Model(network.eval(), probabilities=True, **settings), IMAGES, method=method)
    expected = konkyo.explain(konkyo.Model(plain.eval(), **settings), IMAGES, method=method)
    assert told.labels == expected.labels
    torch.testing.assert_close(told.scores, expected.scores)
    torch.testing.assert_close(told.signed, expected.signed, atol=1e-6, rtol=1e-4)


def test_with_probabilities_a_softmax_is_explained_as_its_logarithm() -> None:
    network, plain = Ends(lambda z: z.softmax(1), 4), Ends(lambda z: z.log_softmax(1), 4)
    told, messages = explained(network, probabilities=True)
    expected, _ = explained(plain)
    assert messages == []
    assert told.labels == expected.labels
    torch.testing.assert_close(told.scores, expected.scores)
    torch.testing.assert_close(told.signed, expected.signed, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("outputs", "multilabel"), [(1, False), (4, False), (4, True)])
def test_with_probabilities_the_probability_is_the_networks_own(outputs: int, multilabel: bool) -> None:
    end = (lambda z: z.softmax(1)) if outputs > 1 and not multilabel else torch.sigmoid
    network = Ends(end, outputs, 1.0).eval()
    model = konkyo.Model(network, probabilities=True, multilabel=multilabel)
    result = konkyo.explain(model, IMAGES, method="odam", target=konkyo.TopK(1))  # it explains the probability
    torch.testing.assert_close(result.scores, network(IMAGES).detach().amax(1))


def test_logits_are_no_probabilities_and_sigmoids_no_softmax() -> None:
    with pytest.raises(konkyo.KonkyoError, match="probabilities=False"):
        explained(Ends(lambda z: z * 100, 3), probabilities=True)
    with pytest.raises(konkyo.KonkyoError, match="multilabel=True"):
        explained(Ends(torch.sigmoid, 3), probabilities=True)


def test_who_says_logits_is_believed() -> None:
    result, messages = explained(Ends(torch.sigmoid), classes=NAMES, probabilities=False)
    assert (messages, result.assumptions, result.labels) == ([], (), ("ill", "ill"))


def test_what_is_said_stays_in_a_replaced_model() -> None:
    model = konkyo.Model(Ends(torch.sigmoid, 4), probabilities=True, multilabel=True)
    task = replace(replace(model, name="other"), probabilities=False).task
    assert (task.multilabel, task.probabilities) == (True, False)  # type: ignore[attr-defined]
    detector = konkyo.dense_detector(model.module, classes=2)
    with pytest.raises(konkyo.KonkyoError, match="activated"):
        konkyo.Model(model.module, detector=detector, probabilities=True)


@pytest.mark.parametrize("told", [True, False, None])
@pytest.mark.parametrize("bias", [12.0, 18.0, -18.0, 40.0])
def test_a_saturated_sigmoid_inside_the_network_is_diagnosed(bias: float, told: bool | None) -> None:
    result, _ = explained(Ends(torch.sigmoid, bias=bias), probabilities=told)
    if told and abs(bias) < 15:  # the log-odds undo it
        assert all(d.kind == "ok" for d in result.diagnosis)
    else:
        assert all(d.kind == "saturated" and "own sigmoid" in d.message for d in result.diagnosis)


@pytest.mark.parametrize("told", [True, False, None])
def test_a_saturated_softmax_inside_the_network_is_diagnosed(told: bool | None) -> None:
    result, _ = explained(Ends(lambda z: z.softmax(1), 4, bias=14.0), probabilities=told)
    assert all(d.kind == "saturated" and "own sigmoid or softmax" in d.message for d in result.diagnosis)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("method", ["eigen_cam", "hires_cam"])
def test_a_score_that_is_no_number_is_never_ok(value: float, method: str) -> None:
    model = konkyo.Model(Ends(lambda z: torch.cat([z, z[:, :1] * 0 + value], 1), 2).eval())
    with pytest.warns(konkyo.KonkyoWarning, match="NaN or infin"):
        result = konkyo.explain(model, IMAGES, method=method, target=2)
    assert {d.kind for d in result.diagnosis} == {"not finite"}


@pytest.mark.parametrize(("largest", "expected"), [(0.9, True), (3.0, False)])
def test_single_numbers_without_a_graph_are_probabilities_where_all_lie_in_0_to_1(
    largest: float, expected: bool
) -> None:
    output = torch.tensor([[0.5], [largest]])
    assert ClassificationTask().holds_probabilities(output, lambda: output) == expected


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grad_cam", "eigen_cam", "relevance_cam", "rise", "saliency", "ig_odam"])
@pytest.mark.parametrize(
    "target", [-1, 3, konkyo.ClassTarget(7), konkyo.Against(7), konkyo.ContrastTarget(0, 7), [0, 7], konkyo.Each(0, 7)]
)
def test_a_class_that_is_not_there_is_refused_by_every_method(target: Any, method: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=r"class (-1|3|7) of a model with 3 classes \(0 to 2\)"):
        konkyo.explain(Ends(lambda z: z, 3).eval(), IMAGES, method=method, target=target)


def test_one_logit_has_two_classes_for_top_k_too() -> None:
    network = Ends(lambda z: z, bias=3.0).eval()
    result = konkyo.explain(network, IMAGES, method="hires_cam", target=konkyo.TopK(2))
    assert result.labels == ("positive", "negative") * 2
    assert len(result.assumptions) == 1
    assert "target=lambda" in result.assumptions[0]
    with pytest.raises(konkyo.KonkyoError, match="2 classes"):
        konkyo.explain(network, IMAGES, target=konkyo.TopK(3))
    with pytest.raises(konkyo.KonkyoError, match="0 to 1"):
        konkyo.explain(network, IMAGES, target=2)

"""Which of several outputs is explained: by name, by shape, by the number of classes, or not without a word."""

from __future__ import annotations

import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import konkyo
from konkyo.models.outputs import choose, headless

CLASSES = 5
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Several(nn.Module):
    """A small classifier that returns what `form(map, features, logits)` makes of its tensors."""

    def __init__(self, form: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.form = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, CLASSES), form

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grid = self.conv(x).relu()
        features = grid.mean((2, 3))
        return grid, features, self.fc(features)

    def forward(self, x: Tensor) -> Any:
        return self.form(*self.parts(x))


class Main(NamedTuple):
    """As torchvision's Inception returns them."""

    logits: Tensor
    aux_logits: Tensor


Unnamed = namedtuple("Unnamed", "first second")


@dataclass
class Embedded:
    embedding: Tensor
    logits: Tensor


@dataclass
class Plain:
    a: Tensor
    b: Tensor


CERTAIN: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "named tuple": lambda m, f, z: Main(z, z * 2),
    "dataclass": lambda m, f, z: Embedded(f, z),
    "logits, map": lambda m, f, z: (z, m),
    "map, logits": lambda m, f, z: [m, z],
    "nested": lambda m, f, z: {"body": {"x": f}, "head": {"logits": z}},
    "logits among losses": lambda m, f, z: (z.sum(), z, z.argmax(1)),
    "the same twice": lambda m, f, z: (z, z),
    "other name": lambda m, f, z: {"aux_logits": z * 0, "class_logits": z, "feat": f},
    "out and aux": lambda m, f, z: OrderedDict(aux=z * 0, out=z),
    "features by name": lambda m, f, z: {"features": f, "pred": z},
    "probabilities beside": lambda m, f, z: {"probs": z.softmax(1), "logits": z},
    "hidden states": lambda m, f, z: {"loss": None, "logits": z, "hidden_states": (m, m), "attentions": None},
    "in one of two": lambda m, f, z: {"out": {"a": z}, "aux": {"a": z * 0}},
}
DOUBTFUL: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "features, logits": lambda m, f, z: (f, z),
    "a dict of two": lambda m, f, z: {"a": f, "b": z},
    "a dataclass of two": lambda m, f, z: Plain(f, z),
    "a named tuple of two": lambda m, f, z: Unnamed(f, z),
    "nested tuples": lambda m, f, z: ((f,), (z,)),
    "three": lambda m, f, z: [f, z, f[:, :3]],
}


@pytest.mark.parametrize("form", CERTAIN.values(), ids=CERTAIN)
def test_the_logits_are_found_without_a_word(form: Callable[..., Any]) -> None:
    network = Several(form).eval()
    logits = network.parts(IMAGES)[2]
    result = konkyo.explain(network, IMAGES, method="eigen_cam", target=konkyo.TopK(1))
    torch.testing.assert_close(result.scores, logits.detach().amax(1))
    assert [target.class_index for target in result.targets] == logits.argmax(1).tolist()


@pytest.mark.parametrize("form", DOUBTFUL.values(), ids=DOUBTFUL)
def test_several_that_could_be_are_listed_with_the_way_out(form: Callable[..., Any]) -> None:
    network = Several(form).eval()
    with pytest.raises(konkyo.KonkyoError, match=r"\(N, 16\).*\(N, 5\).*select=lambda output: output"):
        konkyo.explain(network, IMAGES)


@pytest.mark.parametrize("form", DOUBTFUL.values(), ids=DOUBTFUL)
def test_the_number_of_classes_decides(form: Callable[..., Any]) -> None:
    network = Several(form).eval()
    result = konkyo.explain(konkyo.Model(network, classes="abcde"), IMAGES, method="eigen_cam", target=konkyo.TopK(1))
    torch.testing.assert_close(result.scores, network.parts(IMAGES)[2].detach().amax(1))


def test_two_names_are_of_one_logit_or_of_two() -> None:
    one, two, many = torch.rand(3, 1), torch.rand(3, 2), torch.rand(3, 7)
    assert choose((many, one), 2).tensor is one
    assert choose((many, two), 2).tensor is two
    with pytest.raises(konkyo.KonkyoError, match="3 tensors"):
        choose((many, one, two), 2)


def test_the_error_says_what_selects() -> None:
    network = Several(DOUBTFUL["nested tuples"]).eval()
    model = konkyo.Model(network, select=lambda output: output[1][0])
    result = konkyo.explain(model, IMAGES, method="eigen_cam", target=konkyo.TopK(1))
    torch.testing.assert_close(result.scores, network.parts(IMAGES)[2].detach().amax(1))
    assert result.assumptions == ()


@pytest.mark.parametrize("count", [2, 3])
def test_of_heads_of_one_size_the_first_is_taken_with_a_warning(count: int) -> None:
    network = Several(lambda m, f, z: tuple(z * (k + 1) for k in range(count))).eval()
    with pytest.warns(konkyo.KonkyoWarning, match="The first is explained") as caught:
        result = konkyo.explain(network, IMAGES, method="eigen_cam", target=1)
    assert len(caught) == 1
    torch.testing.assert_close(result.scores, network.parts(IMAGES)[2].detach()[:, 1])
    assert result.assumptions == (str(caught[0].message),)


def test_a_choice_by_shape_is_an_assumption() -> None:
    result = konkyo.explain(Several(CERTAIN["map, logits"]).eval(), IMAGES, method="eigen_cam", target=0)
    (sentence,) = result.assumptions
    assert "output[1] (N, 5)" in sentence
    assert "output[0] (N, 16, 8, 8)" in sentence


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda m, f, z: z.argmax(1), "int64"),
        (lambda m, f, z: z[:, 0], r"output\[:, None\]"),
        (lambda m, f, z: z[:, :, None, None], "flatten"),
        (lambda m, f, z: m, r"RegionTarget\(3\)"),
        (lambda m, f, z: m.flatten(2), "dense_detector"),
        (lambda m, f, z: [m, m[:, :, ::2]], "none is of classes"),
        (lambda m, f, z: {"last_hidden_state": m, "pooler_output": f}, "features, not classes"),
        (lambda m, f, z: [{"boxes": f[:, :4], "scores": z[:, 0], "labels": z.argmax(1)}] * 2, "a detector"),
        (lambda m, f, z: {"logits": {"age": z[:, :1], "sex": z[:, 1:3]}}, r"\['age'\].*\['sex'\]"),
    ],
)
def test_what_holds_no_decision_says_what_to_do(form: Callable[..., Any], message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.explain(Several(form).eval(), IMAGES)


def test_a_squeezed_output_of_one_image() -> None:
    network = Several(lambda m, f, z: z[:, :1].squeeze()).eval()
    with pytest.raises(konkyo.KonkyoError, match=r"reshape\(-1, 1\)"):
        konkyo.explain(network, IMAGES[:1])
    model = konkyo.Model(network, classes=("a", "b"), select=lambda output: output.reshape(-1, 1))
    expected = network.parts(IMAGES[:1])[2][:, :1].detach().abs()
    torch.testing.assert_close(
        konkyo.explain(model, IMAGES[:1], method="eigen_cam", target=konkyo.TopK(1)).scores, expected[0]
    )


# --- networks without a head -----------------------------------------------------------------------------------------


def torchvision_backbone() -> nn.Module:
    import torchvision

    network = torchvision.models.resnet18(weights=None)
    network.fc = nn.Identity()
    return network.eval()


def timm_backbone() -> nn.Module:
    timm = pytest.importorskip("timm")
    network: nn.Module = timm.create_model("resnet18", num_classes=0)
    return network.eval()


def transformers_regression() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=1)
    config.problem_type = "regression"
    network: nn.Module = transformers.ResNetForImageClassification(config)
    return network.eval()


@pytest.mark.parametrize("build", [torchvision_backbone, timm_backbone])
def test_embeddings_have_no_decision_and_no_class(build: Callable[[], nn.Module]) -> None:
    network, x = build(), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(konkyo.KonkyoError, match=r"embeddings, not classes.*konkyo\.Similarity"):
        konkyo.explain(network, x, method="hires_cam")
    with pytest.raises(konkyo.KonkyoError, match="'positive' names nothing"):
        konkyo.explain(network, x, target="positive")
    agnostic = konkyo.explain(network, x, method="eigen_cam")
    with torch.no_grad():
        output = network(x)
    torch.testing.assert_close(agnostic.scores, output.norm(dim=1))
    assert agnostic.labels == ("the whole output",)
    assert agnostic.assumptions == ()
    for target in (konkyo.Output(0), konkyo.Similarity(torch.ones(output.shape[1]))):
        torch.testing.assert_close(
            agnostic.maps, konkyo.explain(network, x, method="eigen_cam", target=target).maps, rtol=0, atol=0
        )
    own = konkyo.explain(network, x, method="hires_cam", target=lambda o: o.sum(1))
    assert own.assumptions == ()


@pytest.mark.parametrize("names", [(), tuple("abcde")])
def test_outputs_of_the_length_1_are_embeddings_unless_they_have_names(names: tuple[str, ...]) -> None:
    network = Several(lambda _m, _f, z: nn.functional.normalize(z)).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = konkyo.explain(konkyo.Model(network, classes=names), IMAGES, method="hires_cam")
    said = [str(warning.message) for warning in caught if "the length 1" in str(warning.message)]
    assert len(said) == (0 if names else 1)
    assert result.assumptions == tuple(said)


def test_a_regression_of_transformers_has_no_class() -> None:
    network, x = transformers_regression(), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(konkyo.KonkyoError, match="'positive' means nothing"):
        konkyo.explain(network, x, target="positive")
    result = konkyo.explain(network, x, method="hires_cam")
    torch.testing.assert_close(result.scores, network(x).logits[:, 0].detach())
    assert result.labels == ("the estimate",)


def test_a_base_model_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])
    network, x = transformers.ResNetModel(config).eval(), IMAGES[:1]
    with pytest.raises(konkyo.KonkyoError, match="embeddings, not classes"):
        konkyo.explain(network, torch.cat([x, x], 3))
    assert konkyo.explain(network, x, method="eigen_cam").labels == ("the whole output",)


def test_feature_maps_as_a_list() -> None:
    timm = pytest.importorskip("timm")
    network, x = timm.create_model("resnet18", features_only=True).eval(), torch.rand(1, 3, 64, 64)
    with pytest.raises(konkyo.KonkyoError, match=r"5 tensors.*eigen_cam"):
        konkyo.explain(network, x)
    model = konkyo.Model(network, select=lambda output: output[-1])
    assert konkyo.explain(model, x, method="eigen_cam").labels == ("the whole output",)


def test_an_identity_after_a_head_is_no_missing_head() -> None:
    head = nn.Linear(8, 5)
    assert headless(nn.Sequential(nn.Conv2d(3, 8, 3), head, nn.Identity()), 5) == ""
    assert headless(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 9), nn.ReLU(), nn.Identity()), 9) != ""
    assert headless(nn.Sequential(nn.Conv2d(3, 8, 3), head), 5) == ""


# --- a module that is a detector --------------------------------------------------------------------------------------


def small_detector() -> Any:
    import torchvision

    return torchvision.models.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4
    ).eval()


def test_a_librarys_detector_stays_one_in_a_model() -> None:
    module = small_detector()
    names = ("a", "b", "c")
    model = konkyo.Model(module, konkyo.Preprocess(None, None, (0.0,) * 3, (1.0,) * 3), classes=names)
    assert model.detector is not None
    assert model.detector.classes == 3
    assert replace(model, name="other").detector is not None
    assert konkyo.Model(nn.DataParallel(module)).detector is not None

    derived = type("Derived", (type(module),), {})
    module.__class__ = derived
    assert konkyo.Model(module).detector is not None


def test_a_background_among_the_names_is_no_class() -> None:
    module = small_detector()
    assert konkyo.Model(module, classes=("__background__", "a", "b", "c")).classes == ("a", "b", "c")
    assert konkyo.Model(module, classes=("a", "b", "c", "background")).classes == ("a", "b", "c", "background")


@pytest.mark.parametrize(
    "settings",
    [
        {"select": lambda output: output[0]["scores"][None]},
        {"call": lambda module, images: module(images)},
        {"multilabel": False},
        {"probabilities": True},
    ],
)
def test_a_detector_with_settings_of_a_classifier_is_none(settings: dict[str, Any]) -> None:
    assert konkyo.Model(small_detector(), **settings).detector is None

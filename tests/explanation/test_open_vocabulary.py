"""Detections of detectors that read texts: maps by hand, contrasts of two texts, further texts, loading by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import konkyo
from helpers.commands import Run, runner
from helpers.detections import instances, score_by_hand, summed
from helpers.detectors_of_transformers import leaves_at
from helpers.open_vocabulary import NAMES, network, pictures, processor
from konkyo.errors import KonkyoError

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
    ),
    pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning"),  # of maps that are negative everywhere
]
EVERY = pytest.mark.parametrize("name", NAMES)
TEXTS = ("cat", "red remote", "left dog")
ALL = konkyo.Detections(threshold=0.0, top=3)


def model_of(name: str, *texts: str) -> konkyo.Model:
    return konkyo.Model(network(name), processor=processor(name)).prompted(texts=texts or TEXTS)


def gradients_at(model: konkyo.Model, images: Tensor, score: Any) -> tuple[list[Tensor], list[Tensor]]:
    """(activations, gradients) of one image's score by its candidates (Q, 4 + K), as grids (C, h, w)."""
    detector = model.detector
    assert detector is not None
    with leaves_at(model.module, str(detector.layer)) as leaves:  # of a single image torch differentiates batch norm
        output = detector.propose(model.module, images.repeat(2, 1, 1, 1))  # wrongly where a gradient's strides are odd
    gradients = torch.autograd.grad(score(output[0]), leaves)

    def grid(tensor: Tensor) -> Tensor:  # tokens: the class token, then the patches row by row
        return tensor[0] if tensor.ndim == 4 else tensor[0, 1:].T.unflatten(1, (6, 6))

    return [grid(leaf.detach()) for leaf in leaves], [grid(gradient) for gradient in gradients]


@EVERY
def test_odam_is_the_gradient_times_the_activations_summed_over_levels(name: str) -> None:
    model, images = model_of(name), pictures(name)
    result = konkyo.explain(model, images, method="odam", target=ALL)
    assert len(result) == 6
    for row, target in enumerate(instances(result)):
        image = images[result.image_index[row]][None]
        activations, gradients = gradients_at(model, image, lambda output, t=target: score_by_hand(t, output))
        expected = summed(gradients, activations)
        torch.testing.assert_close(result.signed[row], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
        torch.testing.assert_close(result.maps[row], result.signed[row].relu())
    assert result.signed.isfinite().all()
    assert set(result.labels) <= set(TEXTS)


@EVERY
def test_a_contrast_is_of_two_texts_for_one_candidate(name: str) -> None:
    model, images = model_of(name), pictures(name, 1)
    pairs = konkyo.Detections(0.0, top=2, classes=("cat",), suppressed=False)
    result = konkyo.explain(model, images, method="odam", target=konkyo.ContrastTarget(pairs, "left dog"))
    single = konkyo.explain(model, images, method="odam", target=pairs)
    assert result.labels == ("cat, not left dog",) * 2
    torch.testing.assert_close(result.boxes, single.boxes)
    output = model(images).detach()[0]
    for row, target in enumerate(instances(single)):
        own, other = output[target.index, 4].logit(), output[target.index, 6].logit()
        torch.testing.assert_close(result.scores[row], own - other, rtol=1e-4, atol=1e-4)
        index = target.index
        activations, gradients = gradients_at(
            model, images, lambda output, i=index: output[i, 4].logit() - output[i, 6].logit()
        )
        expected = summed(gradients, activations)
        torch.testing.assert_close(result.signed[row], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_class_is_not_compared_with_itself() -> None:
    model, images = model_of("Owlv2"), pictures("Owlv2", 1)
    every = konkyo.Detections(0.0, suppressed=False)
    result = konkyo.explain(model, images, method="odam", target=konkyo.ContrastTarget(every, "cat"))
    assert set(result.labels) == {"red remote, not cat", "left dog, not cat"}


def test_a_contrast_that_follows_no_single_candidate_is_refused() -> None:
    model, images = model_of("OwlViT"), pictures("OwlViT", 1)
    for target, message in (
        (konkyo.ContrastTarget(konkyo.Detections(class_similarity="same"), 1), "follows one candidate"),
        (konkyo.ContrastTarget("cat", 3), "classes are 0 to 2"),
        (konkyo.ContrastTarget("cat", "mouse"), "unknown class 'mouse'"),
        (konkyo.ContrastTarget("cat", konkyo.Detections()), "is of two classes"),
    ):
        with pytest.raises(KonkyoError, match=message):
            konkyo.explain(model, images, target=target)


@pytest.mark.parametrize("name", ["OwlViT", "Owlv2"])
def test_a_further_text_changes_no_other_map_of_owl(name: str) -> None:
    images, wanted = pictures(name, 1), konkyo.Detections(0.0, top=2, classes=("cat",), suppressed=False)
    few = konkyo.explain(model_of(name, "cat", "red remote"), images, method="odam", target=wanted)
    more = konkyo.explain(model_of(name), images, method="odam", target=wanted)
    torch.testing.assert_close(more.maps, few.maps, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(more.boxes, few.boxes)


@pytest.mark.parametrize("name", ["GroundingDino", "OmDetTurbo"])
def test_a_further_text_changes_the_maps_of_what_fuses_texts(name: str) -> None:
    images, wanted = pictures(name, 1), konkyo.Detections(0.0, top=1, classes=("cat",), suppressed=False)
    few = konkyo.explain(model_of(name, "cat", "red remote"), images, method="odam", target=wanted)
    more = konkyo.explain(model_of(name), images, method="odam", target=wanted)
    assert (more.signed - few.signed).abs().max() > 1e-3 * few.signed.abs().max()


@EVERY
@pytest.mark.parametrize(
    ("method", "options"),
    [("grad_cam", {}), ("ig_odam", {"nodes": 3}), ("adaptive_ig_odam", {"nodes": 3, "initial": 2}),
     ("d_rise", {"masks": 6, "cells": 4}), ("input_x_gradient", {})],
)  # fmt: skip
def test_methods_of_detectors_have_finite_maps(name: str, method: str, options: dict[str, Any]) -> None:
    model = model_of(name)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    result = konkyo.explain(model, pictures(name, 1), method=method, target=ALL, **options)
    assert len(result) == 3
    assert result.signed.isfinite().all()
    assert result.signed.abs().amax() > 0
    assert all(torch.equal(before[key], value) for key, value in model.module.state_dict().items())


def test_the_limit_is_that_of_the_library_where_none_is_given() -> None:
    limits = {"GroundingDino": 0.25, "OwlViT": 0.1, "OmDetTurbo": 0.3}
    for name, limit in limits.items():
        model, images = model_of(name), pictures(name, 1)
        given = konkyo.explain(model, images, method="odam", target=konkyo.Detections(limit))
        torch.testing.assert_close(konkyo.explain(model, images, method="odam").scores, given.scores)
        assert len(given) > len(konkyo.explain(model, images, method="odam", target=konkyo.Detections(0.99)))


# --- by name, and on the command line ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its processor, as `save_pretrained` writes them."""
    network("OwlViT").save_pretrained(tmp_path / "owl")  # type: ignore[operator]
    processor("OwlViT").save_pretrained(tmp_path / "owl")
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((160, 100)).save(tmp_path / "picture.png")
    return tmp_path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner("", "", tmp_path, monkeypatch, capsys)


def test_a_folder_is_loaded_with_texts_and_a_template(folder: Path) -> None:
    model = konkyo.load(f"hf/{folder / 'owl'}", texts=["cat", "dog"], template="a red {}")
    assert model.classes == ("cat", "dog")
    expected = model_of("OwlViT", "a red cat", "a red dog")
    images = pictures("OwlViT")
    torch.testing.assert_close(model(images), expected(images))
    result = konkyo.explain(model, folder / "picture.png", method="odam", target=konkyo.Detections(0.0, top=2))
    inputs = processor("OwlViT")(
        text=[["a red cat", "a red dog"]], images=Image.open(folder / "picture.png"), return_tensors="pt"
    )
    own = processor("OwlViT").post_process_grounded_object_detection(model.module(**inputs), 0.0, [(100, 160)])[0]
    order = own["scores"].argsort(descending=True)[:2]
    assert result.boxes is not None
    torch.testing.assert_close(result.boxes, own["boxes"][order].detach(), rtol=0, atol=0.02)
    torch.testing.assert_close(result.scores, own["scores"][order].detach(), rtol=0, atol=1e-3)


def test_the_command_line_takes_texts(folder: Path, run: Run) -> None:
    common = ["explain", folder / "picture.png", "--model", f"hf/{folder / 'owl'}", "--method", "odam", "--score", "0"]
    found = run(*common, "--texts", "cat; dog", "--top", "1", "--out", folder / "out")
    assert found.code == 0, found
    assert "cat" in found.out or "dog" in found.out
    assert list((folder / "out").glob("**/*.png"))
    told = run(*common, "--out", folder / "none")
    assert (told.code, "reads text beside the image; give texts=" in told.err) == (1, True)
    labels = ""
    for this, that in (("cat", "dog"), ("dog", "cat")):
        found = run(*common, "--texts", "cat;dog", "--class", this, "--not", that, "--out", folder / this)
        labels += found.out
    assert ", not " in labels

"""Trained networks on photographs: loading, preprocessing, class names and maps, proven together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import konkyo
from helpers.paths import DATA
from konkyo.data.images import find_images, open_image

PHOTOS, WEIGHTS = DATA / "imagenet", DATA / "weights"

pytestmark = pytest.mark.skipif(
    not PHOTOS.is_dir(), reason="needs the photographs: KONKYO_TEST_DATA names their folder"
)


@pytest.fixture(scope="module")
def classes() -> tuple[list[str], tuple[str, ...]]:
    """(WordNet ids, names), in the order of the logits."""
    lines = [line.split("\t") for line in (PHOTOS / "classes.txt").read_text(encoding="utf-8").splitlines()]
    return [line[0] for line in lines], tuple(line[1] for line in lines)


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    found = find_images(PHOTOS)
    assert len(found) == 70
    return found


@pytest.fixture(scope="module")
def squeezenet(classes: tuple[list[str], tuple[str, ...]]) -> konkyo.Model:
    model = konkyo.load("torchvision/squeezenet1_1", weights=WEIGHTS / "squeezenet1_1_imagenet.safetensors")
    differing = [(ours, theirs) for ours, theirs in zip(model.classes, classes[1], strict=True) if ours != theirs]
    assert differing == [("crane bird", "crane"), ("maillot tank suit", "maillot")]  # told apart by torchvision only
    return replace(model, preprocess=replace(model.preprocess, resize=256, crop=227))


def top1(model: konkyo.Model, photos: list[Path], ids: list[str]) -> float:
    """The share of photographs whose highest class is the one in their file's name."""
    assert model.preprocess is not None
    decided: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(photos), 14):
            batch = torch.stack([model.preprocess(open_image(photo)) for photo in photos[start : start + 14]])
            decided.append(model(model.prepared(batch)).argmax(1))
    wanted = torch.tensor([ids.index(photo.name.split("_")[0]) for photo in photos])
    return (torch.cat(decided) == wanted).float().mean().item()


def test_squeezenet_is_as_right_as_it_should_be(
    squeezenet: konkyo.Model, photos: list[Path], classes: tuple[list[str], tuple[str, ...]]
) -> None:
    assert round(70 * top1(squeezenet, photos, classes[0])) == 43


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@pytest.mark.parametrize(
    ("photo", "this", "that"),
    [
        ("n07754684_jackfruit.JPEG", "jackfruit", "cheeseburger"),
        ("n03891332_parking_meter.JPEG", "parking meter", "ashcan"),
    ],
)
@pytest.mark.parametrize("method", ["grad_cam", "layer_cam"])
def test_two_classes_in_one_photograph_have_different_maps(
    squeezenet: konkyo.Model, photo: str, this: str, that: str, method: str
) -> None:
    found = konkyo.explain(squeezenet, PHOTOS / photo, method=method, target=konkyo.Each(this, that))
    assert found.labels == (this, that)
    assert all(diagnosis.ok for diagnosis in found.diagnosis)
    assert found.layer == "features"
    assert found.maps.shape == (2, 14, 14)
    assert correlation(*found.maps) < 0.8
    again = konkyo.explain(squeezenet, PHOTOS / photo, method=method, target=this)
    assert correlation(found.maps[0], again.maps[0]) > 0.999  # the same class has the same map


def test_what_is_shown_is_what_was_decided_on(squeezenet: konkyo.Model) -> None:
    """Without the strongest fifth of the map the class's probability falls further than without the weakest fifth."""
    names = ["n02123045_tabby.JPEG", "n02279972_monarch.JPEG", "n01443537_goldfish.JPEG", "n01818515_macaw.JPEG"]
    found = konkyo.explain(squeezenet, [PHOTOS / name for name in names], method="grad_cam")
    assert squeezenet.preprocess is not None
    batch = torch.stack([squeezenet.preprocess(open_image(PHOTOS / name)) for name in names])
    heat = found.at(tuple(batch.shape[2:])).flatten(1)
    order, count = heat.argsort(1), heat.shape[1] // 5
    remaining = []
    for chosen in (order[:, -count:], order[:, :count]):
        kept = torch.ones_like(heat).scatter(1, chosen, 0.0).view(len(names), 1, *batch.shape[2:])
        with torch.inference_mode():
            probabilities = squeezenet(batch * kept).softmax(1)
        remaining.append(torch.stack([probabilities[i, t.index] for i, t in enumerate(found.targets)]))
    assert remaining[0].mean() < 0.5 * remaining[1].mean()


def test_a_timm_model_as_it_is(photos: list[Path], classes: tuple[list[str], tuple[str, ...]]) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import load_file

    network = timm.create_model("mobilenetv2_100", pad_type="same")
    network.load_state_dict(load_file(WEIGHTS / "mobilenetv2_100_same_imagenet.safetensors"))
    preprocess = konkyo.Preprocess(256, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model = konkyo.Model(network.eval(), preprocess, classes[1], "mobilenetv2_100")
    assert round(70 * top1(model, photos, classes[0])) == 62
    layer = model.automatic_layers((3, 224, 224))[0]
    assert layer is not None
    assert layer.name == "bn2"  # with its activation, right before the pooling
    found = konkyo.compare(model, PHOTOS / "n01443537_goldfish.JPEG", ("cam", "grad_cam", "hires_cam"))
    assert found["cam"].labels == ("goldfish",)
    assert found["cam"].maps.shape == (1, 7, 7)
    # behind global average pooling and one linear layer all of them are the same up to a factor
    assert correlation(found["cam"].signed, found["grad_cam"].signed) > 0.9999
    assert correlation(found["cam"].signed, found["hires_cam"].signed) > 0.9999

"""Depth and density: a number for every place, averaged or summed over a part of the picture that stays the same."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers.closeness import close
from helpers.networks import seeded
from konkyo.engine.trace import share_around
from konkyo.explanation.words import score_in_words

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


def glpn() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GLPNConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 20, 32], decoder_hidden_size=8, num_attention_heads=[1, 1, 2, 2]
    )
    return transformers.GLPNForDepthEstimation(config)  # type: ignore[no-any-return]


NECK = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}
TOKENS = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


def dpt() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.DPTConfig(
        **TOKENS, **NECK, image_size=64, patch_size=16, intermediate_size=48, backbone_out_indices=[0, 1, 2, 3]
    )
    return transformers.DPTForDepthEstimation(config)  # type: ignore[no-any-return]


def depth_anything(kind: str = "relative") -> nn.Module:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(**TOKENS, image_size=56, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        patch_size=14,
        head_hidden_size=8,
        depth_estimation_type=kind,
        **NECK,
    )
    return transformers.DepthAnythingForDepthEstimation(config)  # type: ignore[no-any-return]


class Density(nn.Module):
    """A network of densities: convolutions and a linear 1 x 1 head without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Conv2d(8, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        density: Tensor = self.head(self.body(x))
        return density


DEPTHS: dict[str, Callable[[], nn.Module]] = {"glpn": glpn, "dpt": dpt, "depth anything": depth_anything}


SIZES = {"glpn": 64, "dpt": 64, "depth anything": 56}


def noise(size: int = 56) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2)).double()


def network_of(name: str) -> nn.Module:
    network = DEPTHS[name]().double().eval()
    for key, tensor in network.state_dict().items():  # those that the library draws leave nothing of the image
        if tensor.ndim > 1 and ("neck" in key or "head" in key or "decoder" in key):
            tensor.copy_(torch.randn_like(tensor) * tensor[0].numel() ** -0.5)
    return network


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("name", DEPTHS)
def test_depth_against_finite_differences(name: str, relative: bool) -> None:
    network, x = network_of(name), noise(SIZES[name])
    box = (8.0, 16.0, 24.0, 40.0)
    result = konkyo.explain(
        network, x, method="gradient", target=konkyo.Depth(konkyo.Region(box=box), relative=relative)
    )

    def score(image: Tensor) -> float:
        with torch.no_grad():
            field = network(image).predicted_depth[0]
        inside = torch.zeros_like(field, dtype=torch.bool)
        inside[16:40, 8:24] = True
        return float(field[inside].mean() - (field[~inside].mean() if relative else 0))

    assert float(result.scores) == pytest.approx(score(x), rel=1e-4, abs=1e-9)
    for row, column in ((20, 12), (33, 50)):
        moved = [x.clone(), x.clone()]
        moved[0][0, :, row, column] += 1e-6
        moved[1][0, :, row, column] -= 1e-6
        slope = (score(moved[0]) - score(moved[1])) / 2e-6
        assert float(result.maps[0, row, column]) == pytest.approx(slope, rel=2e-2, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "layer"), [("glpn", "glpn"), *[(n, "neck.reassemble_stage") for n in ("dpt", "depth anything")]]
)
def test_the_layer_is_the_backbones_end_and_all_of_the_image_passes_it(name: str, layer: str) -> None:
    model = konkyo.Model(network_of(name))
    result = konkyo.explain(model, noise(SIZES[name]), method="hires_cam")
    assert result.layer == ("glpn" if name == "glpn" else "neck.reassemble_stage")
    assert result.diagnosis[0].ok
    around = share_around(
        model, lambda output: output.mean((1, 2, 3)), noise(SIZES[name]), model.cut(None, (3, SIZES[name], SIZES[name]))
    )
    assert float(around) == pytest.approx(0, abs=1e-6)


def test_what_is_known_of_the_unit() -> None:
    words = {
        "m": (glpn(), depth_anything("metric")),
        "(large is near)": (dpt(), depth_anything()),
    }
    for unit, networks in words.items():
        for network in networks:
            result = konkyo.explain(
                network.eval(), noise(56 if "anything" in network.config.model_type else 64).float()
            )
            assert score_in_words(result, 0).endswith(unit)
            assert result.labels == ("depth",)


def test_pixels_and_boxes_are_those_of_the_picture() -> None:
    """The picture is twice as large as the input, and cropped: its pixel 40,48 is the input's cell 16,20."""
    preprocess = konkyo.Preprocess((32, 40), (32, 32), (0.0,) * 3, (1.0,) * 3)
    model = konkyo.Model(seeded(Density()), preprocess, task=konkyo.DepthTask(unit="m"))
    picture = Image.effect_noise((80, 64), 50).convert("RGB")
    result = konkyo.explain(model, picture, method="gradient", target=konkyo.Pixel(40, 48))
    field = model(model.prepared(preprocess(picture)[None])).detach()[0, 0]
    assert result.labels == ("depth, pixel 40,48",)
    column = (40 // 2 - 4) // 2  # half as large, 4 columns cut off, two columns to a cell
    assert float(result.scores) == pytest.approx(float(field[48 // 2 // 2, column]), rel=1e-5)


def test_a_count_is_the_sum_of_the_density() -> None:
    model, x = konkyo.Model(seeded(Density()), task=konkyo.CountingTask()), noise(32)
    density = model(x).detach()[0, 0]
    whole = konkyo.explain(model, x, method="hires_cam", layer="body")
    close(whole.scores, density.sum()[None])
    close(whole.maps[0], density)  # the head is linear: the map is the density itself
    part = konkyo.explain(model, x, target=konkyo.Count(konkyo.Region(box=(0, 0, 16, 8))))
    close(part.scores, density[:4, :8].sum()[None])
    assert (whole.labels, part.labels) == (("count",), ("count, box 0,0,16,8",))


def test_a_map_that_is_the_prediction_itself_is_said_to_be() -> None:
    model, x = konkyo.Model(seeded(Density()), task=konkyo.CountingTask()), noise(32)
    result = konkyo.explain(model, x, method="hires_cam", layer="body")
    assert result.diagnosis[0].kind == "is output"
    assert "the prediction itself" in result.diagnosis[0].message
    assert konkyo.explain(model, x, method="hires_cam", layer="body.0").diagnosis[0].ok


def test_fields_are_kept_in_files_and_pickles(tmp_path: Path) -> None:
    model = konkyo.Model(seeded(Density()), task=konkyo.DepthTask(unit="m"))
    result = konkyo.explain(model, noise(32), target=konkyo.Depth(konkyo.Region(box=(0, 0, 9, 9)), relative=True))
    loaded = konkyo.Explanation.load(result.save(tmp_path / "r.safetensors"))
    assert loaded.targets == result.targets
    assert pickle.loads(pickle.dumps(result.targets)) == result.targets
    assert hash(loaded.targets) == hash(result.targets)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("cat", "Pixel"),
        (0, "Pixel"),
        (konkyo.Region("cat"), "no classes"),
        (konkyo.Region(within="predicted"), "puts out numbers"),
        (konkyo.Region(box=(400, 0, 500, 9)), "outside"),
    ],
)
def test_a_field_has_no_classes(request_: Any, message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.explain(konkyo.Model(seeded(Density()), task=konkyo.DepthTask()), noise(32), target=request_)
    with pytest.raises(konkyo.KonkyoError, match="a number per place"):
        konkyo.explain(konkyo.Model(Density().body, task=konkyo.DepthTask()), noise(32).float())

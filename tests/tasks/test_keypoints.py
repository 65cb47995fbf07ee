"""Joints: a heat map's value at a place that stays, or where the joint lies."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.closeness import close
from helpers.networks import seeded

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")

NAMES = ("nose", "L_Wrist", "R_Wrist")


def vitpose(mode: str = "simple") -> nn.Module:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        out_indices=[2],
    )
    config = transformers.VitPoseConfig(
        backbone_config=backbone, id2label=dict(enumerate(NAMES)), use_simple_decoder=mode == "simple"
    )
    return transformers.VitPoseForPoseEstimation(config).double().eval()  # type: ignore[no-any-return]


class Hourglass(nn.Module):
    """Convolutions down and up again, as networks of heat maps have them."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        heat: Tensor = self.head(self.up(self.down(x)).relu())
        return heat


def model_of(name: str) -> konkyo.Model:
    if name == "hourglass":
        return konkyo.Model(seeded(Hourglass()), classes=NAMES, task=konkyo.KeypointTask())
    return konkyo.Model(vitpose(name))


def noise(count: int = 1) -> Tensor:
    return torch.randn(count, 3, 64, 48, generator=torch.Generator().manual_seed(3)).double()


MODELS = ("simple", "classic", "hourglass")


@pytest.mark.parametrize("coordinate", [None, "x", "y"])
@pytest.mark.parametrize("name", MODELS)
def test_a_joint_against_finite_differences(name: str, coordinate: Any) -> None:
    model, x = model_of(name), noise()
    assert model.classes == NAMES
    target = konkyo.Keypoint("left wrist", coordinate, temperature=0.5)
    result = konkyo.explain(model, x, method="gradient", target=target)
    heat = model(x)[0, 1].detach()
    row, column = divmod(int(heat.argmax()), heat.shape[1])

    def score(image: Tensor) -> float:
        own = model(image)[0, 1].detach()
        if coordinate is None:
            return float(own[row, column])
        shares = (own / 0.5).exp() / (own / 0.5).exp().sum()
        places = torch.arange(own.shape[1 if coordinate == "x" else 0]).double()
        return float((shares * (places[None] if coordinate == "x" else places[:, None])).sum())

    assert float(result.scores) == pytest.approx(score(x), rel=1e-5)
    for at in ((20, 30), (41, 7)):
        moved = [x.clone(), x.clone()]
        moved[0][0, :, at[0], at[1]] += 1e-5
        moved[1][0, :, at[0], at[1]] -= 1e-5
        slope = (score(moved[0]) - score(moved[1])) / 2e-5
        assert float(result.maps[0, at[0], at[1]]) == pytest.approx(slope, rel=1e-3, abs=1e-8)


def test_the_place_of_a_joint_stays_on_other_images() -> None:
    model, x = model_of("hourglass"), noise(2)
    (target, _) = konkyo.explain(model, x, target=0).targets
    assert isinstance(target, konkyo.Keypoint)
    heat = model(x).detach()[:, 0]
    assert target.place == divmod(int(heat[0].argmax()), heat.shape[2])
    close(target(model(x)).detach(), heat[:, target.place[0], target.place[1]])


def test_the_surest_joints_are_explained_by_default() -> None:
    model, x = model_of("hourglass"), noise()
    peaks = model(x).detach().flatten(2).amax(2)[0]
    result = konkyo.explain(model, x, target=konkyo.TopK(2))
    order = peaks.argsort(descending=True)[:2].tolist()
    assert result.labels == tuple(NAMES[i] for i in order)
    assert konkyo.explain(model, x).labels == result.labels[:1]


@pytest.mark.parametrize("name", ["simple", "classic"])
def test_the_layer_of_vitpose_is_the_backbones_end(name: str) -> None:
    result = konkyo.explain(model_of(name), noise(), method="hires_cam")
    assert result.layer == "backbone.layernorm"
    assert result.maps.shape == (1, 4, 3)


@pytest.mark.parametrize("written", ["left wrist", "left_wrist", "L_Wrist", "l wrist"])
def test_a_joint_is_named_as_data_sets_write_it(written: str) -> None:
    assert konkyo.explain(model_of("hourglass"), noise(), target=written).labels == ("L_Wrist",)


def test_joints_are_kept_in_files_and_pickles(tmp_path: Path) -> None:
    result = konkyo.explain(model_of("hourglass"), noise(), target=konkyo.Each("nose", konkyo.Keypoint(1, "x")))
    loaded = konkyo.Explanation.load(result.save(tmp_path / "r.safetensors"))
    assert loaded.targets == result.targets
    assert result.labels == ("nose", "x of L_Wrist")
    assert pickle.loads(pickle.dumps(result.targets)) == result.targets


@pytest.mark.parametrize(
    ("request_", "message"),
    [("knee", "L_Wrist"), (5, "joint 5 of 3"), (2.5, "konkyo.Keypoint"), (konkyo.Output(0), "shape")],
)
def test_what_is_no_joint_is_refused(request_: Any, message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.explain(model_of("hourglass"), noise(), target=request_)

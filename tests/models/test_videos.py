"""Networks of videos, volumes, signals and spectrograms: axes, the order of their tokens, and how files are read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn

import konkyo
from konkyo import KonkyoError
from konkyo.data.axes import Axes, Coordinates
from konkyo.engine.layer import main_tensor
from konkyo.models.axes import known_axes

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 4,
}  # fmt: skip


def videomae() -> nn.Module:
    config = transformers.VideoMAEConfig(image_size=32, patch_size=8, num_frames=8, tubelet_size=2, **SMALL)
    return transformers.VideoMAEForVideoClassification(config).eval()


def vivit() -> nn.Module:
    config = transformers.VivitConfig(image_size=32, num_frames=8, tubelet_size=[2, 8, 8], **SMALL)
    return transformers.VivitForVideoClassification(config).eval()


def timesformer() -> nn.Module:
    config = transformers.TimesformerConfig(image_size=32, patch_size=8, num_frames=8, **SMALL)
    return transformers.TimesformerForVideoClassification(config).eval()


def ast() -> nn.Module:
    config = transformers.ASTConfig(num_mel_bins=32, max_length=64, patch_size=16, **SMALL)
    return transformers.ASTForAudioClassification(config).eval()


class FrameByFrame(nn.Module):
    """A picture network on every frame (N, T, C, H, W), and the mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1))
        self.head = nn.Linear(8, 4)

    def forward(self, clip: Tensor) -> Tensor:
        features = self.body(clip.flatten(0, 1)).relu().mean((2, 3))
        return self.head(features.view(len(clip), -1, 8).mean(1))


class Frame(nn.Module):
    """It reads frame 5 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 6, (1, 3, 3), padding=(0, 1, 1))
        self.head = nn.Linear(6, 3)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.conv(clip).relu()[:, :, 5].mean((2, 3)))


class Symmetric(nn.Module):
    """What it says is the same when time runs backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)
        with torch.no_grad():
            self.conv.weight.copy_((self.conv.weight + self.conv.weight.flip(2)) / 2)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.conv(clip).relu().mean((2, 3, 4)))


def laid(model: konkyo.Model, layer: konkyo.Layer, clip: Tensor) -> Tensor:
    """Returns what the module of a layer puts out for an input (N, C, *places)."""
    outputs: list[object] = []
    assert layer.module is not None
    handle = layer.module.register_forward_hook(lambda _m, _a, output: outputs.append(output))
    with torch.no_grad():
        model(clip)
    handle.remove()
    output = main_tensor(outputs[-1])
    assert output is not None
    return output


@pytest.mark.parametrize(("text", "places"), [("NTCHW", ("time", "row", "column")), ("NTF", ("time", "frequency"))])
def test_axes_go_in_and_out(text: str, places: tuple[str, ...]) -> None:
    axes = Axes(text)
    given = torch.randn(2, 3, 4, 5, 6)[(slice(None),) * len(text)] if len(text) == 5 else torch.randn(2, 3, 4)
    inside = axes.inside(given)
    assert axes.places == places
    assert inside.shape[:2] == (2, 4 if "C" in text else 1)
    assert torch.equal(axes.outside(inside), given)


@pytest.mark.parametrize("text", ["NCXY", "CHW", "NCHH", "NC", "NCTDHW", "NTCHWL", 5])
def test_other_axes_are_refused(text: str) -> None:
    with pytest.raises(KonkyoError, match=r"as in 'NTCHW'|one N"):
        Axes(text)


def test_five_axes_that_nobody_said_are_refused() -> None:
    with pytest.raises(KonkyoError, match=r'axes="NTCHW"'):
        konkyo.explain(FrameByFrame(), torch.randn(1, 4, 3, 16, 16))
    with pytest.raises(KonkyoError, match="begins with a convolution of 3 channels"):
        konkyo.explain(Symmetric(), torch.randn(1, 4, 3, 16, 16))
    with pytest.raises(KonkyoError, match="inputs have the axes NTCHW"):
        konkyo.explain(konkyo.Model(FrameByFrame(), axes="NTCHW"), torch.randn(2, 3, 16))


def test_a_volume_is_what_a_convolution_in_three_dimensions_reads() -> None:
    result = konkyo.explain(Symmetric().eval(), torch.randn(1, 3, 6, 8, 8), target=0, method="hires_cam")
    assert result.places == ("depth", "row", "column")
    assert any("NCDHW" in sentence for sentence in result.assumptions)


@pytest.mark.parametrize("build", [videomae, vivit, timesformer, ast])
def test_classes_of_libraries_say_their_axes(build) -> None:
    assert known_axes(build()) == Axes("NTF" if build is ast else "NTCHW")


def test_tokens_of_timesformer_lie_place_after_place_with_time_inside() -> None:
    model = konkyo.Model(timesformer())
    (layer,) = model.automatic_layers((3, 8, 32, 32))
    raw = laid(model, layer, torch.randn(1, 3, 8, 32, 32))
    grid = layer.fold(raw)
    assert grid.shape == (1, 16, 8, 4, 4)
    for t, y, x in ((0, 0, 1), (7, 3, 2), (2, 1, 0)):
        assert torch.equal(grid[0, :, t, y, x], raw[0, 1 + (y * 4 + x) * 8 + t])
    assert torch.equal(layer.unfold(grid, raw), raw)


def test_tokens_of_ast_lie_frequency_outside() -> None:
    model = konkyo.Model(ast())
    (layer,) = model.automatic_layers((1, 64, 32))
    raw = laid(model, layer, torch.randn(1, 1, 64, 32))
    grid = layer.fold(raw)
    assert grid.shape == (1, 16, 5, 2)  # time, frequency
    for t, f in ((0, 1), (4, 0), (3, 1)):
        assert torch.equal(grid[0, :, t, f], raw[0, 2 + f * 5 + t])
    assert torch.equal(layer.unfold(grid, raw), raw)


@pytest.mark.parametrize(("build", "prefix"), [(videomae, 0), (vivit, 1)])
def test_tokens_of_tubelets_lie_time_outside(build, prefix: int) -> None:
    model = konkyo.Model(build())
    (layer,) = model.automatic_layers((3, 8, 32, 32))
    raw = laid(model, layer, torch.randn(1, 3, 8, 32, 32))
    grid = layer.fold(raw)
    assert grid.shape == (1, 16, 4, 4, 4)
    for t, y, x in ((0, 0, 1), (3, 3, 2), (2, 1, 0)):
        assert torch.equal(grid[0, :, t, y, x], raw[0, prefix + (t * 4 + y) * 4 + x])


@pytest.mark.parametrize("build", [videomae, vivit, timesformer, ast])
@pytest.mark.parametrize("seed", range(3))
def test_where_the_input_changes_the_layer_changes_most(build, seed: int) -> None:
    """Rule: the cell of a region that is changed must change more than any other."""
    torch.manual_seed(seed)
    model = konkyo.Model(build())
    size = (64, 32) if build is ast else (8, 32, 32)
    channels = 1 if build is ast else 3
    (layer,) = model.automatic_layers((channels, *size))
    clip = torch.randn(1, channels, *size)
    grid = layer.fold(laid(model, layer, clip)).shape[2:]
    for share in (0.1, 0.55, 0.9):
        cell = tuple(int(n * (share if axis != 1 else 1 - share)) for axis, n in enumerate(grid))
        region = tuple(
            slice(c * s // n, max(c * s // n + 1, (c + 1) * s // n)) for c, s, n in zip(cell, size, grid, strict=True)
        )
        changed = clip.clone()
        changed[(0, slice(None), *region)] += 2 * torch.randn_like(changed[(0, slice(None), *region)])
        before, after = (layer.fold(laid(model, layer, x)) for x in (clip, changed))
        change = (after - before)[0].norm(dim=0)
        place = np.unravel_index(int(change.argmax()), change.shape)
        assert all(abs(int(p) - c) <= (1 if build is ast else 0) for p, c in zip(place, cell, strict=True)), (
            place,
            cell,
        )


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "recipro_cam", "input_x_gradient"])
def test_a_network_of_other_axes_has_the_maps_of_the_same_network(method: str) -> None:
    module = Symmetric().eval()
    clip = torch.randn(2, 3, 6, 8, 8)
    usual = konkyo.explain(konkyo.Model(module, axes="NCTHW"), clip, target=1, method=method)
    swapped = konkyo.Model(module, axes="NTCHW", call=lambda m, x: m(x.transpose(1, 2)))
    other = konkyo.explain(swapped, clip.transpose(1, 2), target=1, method=method)
    assert usual.places == other.places == ("time", "row", "column")
    assert float((usual.maps - other.maps).abs().max()) == 0.0


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "integrated_gradients", "rise"])
def test_time_that_runs_backwards_turns_the_map_round(method: str) -> None:
    model = konkyo.Model(Symmetric().eval(), axes="NCTHW")
    clip = torch.randn(1, 3, 6, 8, 8)
    options = {"masks": 8, "cells": (1, 3, 3)} if method == "rise" else {}
    forth = konkyo.explain(model, clip, target=1, method=method, **options)
    back = konkyo.explain(model, clip.flip(2), target=1, method=method, **options)
    torch.testing.assert_close(back.maps.flip(1), forth.maps, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["hires_cam", "layer_cam", "input_x_gradient", "occlusion"])
def test_a_network_that_reads_one_frame_has_all_evidence_there(method: str) -> None:
    model = konkyo.Model(Frame().eval(), axes="NCTHW")
    options = {"window": (1, 4, 4), "stride": (1, 4, 4)} if method == "occlusion" else {}
    result = konkyo.explain(model, torch.randn(1, 3, 8, 8, 8), target=1, method=method, **options)
    over_time = result.maps[0].abs().sum((1, 2))
    assert float(over_time[5]) > 0
    assert float(over_time.sum() - over_time[5]) <= 1e-3 * float(over_time[5])


def test_closed_form_in_three_dimensions() -> None:
    """A linear head on means: Grad-CAM is relu(w . A) / cells, HiResCAM the same without the ReLU of the sum."""
    module = Symmetric().eval()
    clip = torch.randn(1, 3, 4, 6, 5)
    with torch.no_grad():
        features = module.conv(clip).relu()
        expected = torch.einsum("c,nc...->n...", module.head.weight[2], features) / features[0, 0].numel()
    model = konkyo.Model(module, axes="NCDHW")
    torch.testing.assert_close(
        konkyo.explain(model, clip, target=2, layer="conv", method="grad_cam").signed,
        torch.einsum(
            "c,nc...->n...", (module.head.weight[2] * (module.conv(clip) > 0).float().mean((0, 2, 3, 4))).detach(),
            module.conv(clip).detach(),
        ) / features[0, 0].numel(),
    )  # fmt: skip
    hires = konkyo.explain(model, clip, target=2, layer="conv", method="hires_cam")
    torch.testing.assert_close(hires.signed, expected)


def test_frames_that_lie_on_the_batch_axis_are_a_grid() -> None:
    """Of a linear head on means over frames the Grad-CAM of a frame is known in closed form."""
    module = FrameByFrame().eval()
    clip = torch.randn(2, 5, 3, 16, 16)
    model = konkyo.Model(module, axes="NTCHW")
    result = konkyo.explain(model, clip, target=2, layer="body", method="hires_cam")
    with torch.no_grad():
        features = module.body(clip.flatten(0, 1)).relu().view(2, 5, 8, 4, 4)
        expected = torch.einsum("c,ntcyx->ntyx", module.head.weight[2], features) / (5 * 16)
    torch.testing.assert_close(result.signed, expected)
    assert model.automatic_layers((3, 5, 16, 16))[0].stacked == 5
    alone = konkyo.explain(model, clip[:1], target=2, layer="body", method="recipro_cam")
    assert alone.maps.shape == (1, 5, 4, 4)
    with torch.no_grad():  # the score that is left when only the cell (3, 1, 2) of the body's output is there
        body = module.body(clip[0])
        lone = torch.zeros_like(body)
        lone[3, :, 1, 2] = body[3, :, 1, 2]
        score = module.head(lone.relu().mean((2, 3)).mean(0))[None].softmax(1)[0, 2]
    torch.testing.assert_close(alone.maps[0, 3, 1, 2], score)


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_video_models_of_torchvision(name: str) -> None:
    model = konkyo.load(f"torchvision/{name}", weights=None)
    assert len(model.classes) == 400
    assert model.axes == Axes("NCTHW")
    result = konkyo.explain(model, torch.randn(1, 3, 16, 64, 64), target=3, method="hires_cam")
    assert result.places == ("time", "row", "column")
    assert tuple(result.maps.shape) == ((1, 16, 4, 4) if name == "mc3_18" else (1, 2, 4, 4))
    assert result.layer == "layer4"


def test_clips_are_prepared_as_torchvision_does() -> None:
    transform = torchvision.models.get_model_weights("r3d_18").DEFAULT.transforms()
    model = konkyo.load("torchvision/r3d_18", weights=None)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 90, 140, 3), dtype=np.uint8)
    (reading,) = model.reader.read(pixels)
    expected = transform(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    torch.testing.assert_close(reading.values, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("build", [videomae, timesformer, vivit])
def test_models_of_transformers_are_loaded_with_their_processor(build, tmp_path) -> None:
    module = build()
    processor = (transformers.VivitImageProcessor if build is vivit else transformers.VideoMAEImageProcessor)(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    )
    module.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = konkyo.load(f"hf/{tmp_path}")
    assert isinstance(model.reader, konkyo.Clips)
    assert model.reader.frames == 8
    pixels = np.random.default_rng(0).integers(0, 256, (8, 50, 60, 3), dtype=np.uint8)
    expected = processor(list(pixels), return_tensors="pt")["pixel_values"]
    result = konkyo.explain(model, pixels, target=1)
    again = konkyo.explain(module, expected, target=1)
    torch.testing.assert_close(result.scores, again.scores, atol=1e-3, rtol=1e-2)
    assert result.coordinates[0].size == (8, 32, 32)


def test_ast_is_loaded_by_name(tmp_path) -> None:
    ast().save_pretrained(tmp_path)
    model = konkyo.load(f"hf/{tmp_path}")
    spectrogram = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    np.save(tmp_path / "bird.npy", spectrogram)
    model = replace(model, reader=konkyo.Signals(rate=100))
    result = konkyo.explain(model, tmp_path / "bird.npy", target=1)
    assert result.places == ("time", "frequency")
    assert tuple(result.maps.shape) == (1, 5, 2)
    assert result.names == ("bird.npy",)
    assert result.coordinates == (Coordinates((64, 32), (0.01, 1.0), ("s", ""), channels=()),)
    assert result.coordinates[0].interval(0, 1, 4) == (0.16, 0.32)
    torch.testing.assert_close(result.maps, konkyo.explain(model, torch.from_numpy(spectrogram)[None], target=1).maps)


@pytest.mark.parametrize("channels", [1, 12])
def test_signals_have_a_map_of_positions(channels: int) -> None:
    module = nn.Sequential(nn.Conv1d(channels, 6, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    result = konkyo.explain(module.eval(), torch.randn(2, channels, 40), target=1, method="hires_cam")
    assert result.places == ("position",)
    assert tuple(result.maps.shape) == (2, 40)


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_tokens_is_seen_where_all_sides_are_equal(seed: int) -> None:
    torch.manual_seed(seed)
    config = transformers.TimesformerConfig(image_size=32, patch_size=8, num_frames=4, **SMALL)
    model = konkyo.Model(transformers.TimesformerForVideoClassification(config).eval())
    assert [layer.order for layer in model.automatic_layers((3, 4, 32, 32))] == [(1, 2, 0)]
    square = transformers.ASTConfig(num_mel_bins=64, max_length=64, patch_size=16, **SMALL)
    model = konkyo.Model(transformers.ASTForAudioClassification(square).eval())
    assert [layer.order for layer in model.automatic_layers((1, 64, 64))] == [(1, 0)]

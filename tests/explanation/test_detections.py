"""Asking for detections: which rows come, what each target is, and where its box lies in the picture."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers.detections import instances, masks_by_hand
from helpers.detectors import CLASSES, SIZE, dense, noise, recorded
from konkyo.engine.layer import Layer
from konkyo.engine.path import PathTrace
from konkyo.engine.replay import Replay
from konkyo.models.detectors import best_class, best_pairs
from konkyo.targets.detections import InstanceTarget, Match

ALL = konkyo.Detections(threshold=0.0, top=3)
FEW = {"masks": 30, "cells": 4}
Blank = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of maps that are negative everywhere


# --- what detections become -------------------------------------------------------------------------------------------


def test_least_and_class_similarity_reach_the_targets() -> None:
    model, images = dense(), noise(2)
    wanted = replace(ALL, least=0.25, class_similarity="same")
    for targets in model.targets(wanted, model(images).detach()):
        assert [(t.least, t.class_similarity) for t in targets if isinstance(t, InstanceTarget)] == [(0.25, "same")] * 3
    result = konkyo.explain(model, images, method="odam", target=wanted)
    assert [(t.least, t.class_similarity) for t in instances(result)] == [(0.25, "same")] * 6


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (konkyo.Detections(threshold=0.9999), "2 of 2 images: nothing detected with a score above 0.9999; the highest"),
        (konkyo.Detections(threshold=0.9999, classes=(1,)), "nothing of class 1 detected with a score above 0.9999"),
    ],
)
def test_an_empty_result_warns_once_with_the_highest_score(target: konkyo.Detections, message: str) -> None:
    model, images = dense(), noise(2)
    probabilities = model(images).detach()[..., -CLASSES:]
    highest = float(probabilities[..., 1].max() if target.classes else probabilities.max())
    with pytest.warns(konkyo.KonkyoWarning) as warned:
        results = konkyo.compare(model, images, ["odam", "grad_cam"], target=target)
    assert [len(result) for result in results.values()] == [0, 0]
    of_class = slice(1, 2) if target.classes else slice(None)
    each = [f"{float(image.max()):.3g}" for image in probabilities[..., of_class]]
    for result in results.values():
        assert {image: why.rpartition(" ")[2] for image, why in result.absences.items()} == dict(enumerate(each))
        assert result.of_image(1).absences == {0: result.absences[1]}
        assert f"2 images without a map: {result.absences[0]}" in repr(result)
    (warning,) = warned
    assert message in str(warning.message)
    assert str(warning.message).endswith(f"{highest:.3g}")
    assert warning.filename == __file__
    with pytest.warns(konkyo.KonkyoWarning, match=r"^nothing detected"):
        konkyo.explain(model, images[:1], method="odam", target=konkyo.Detections(threshold=0.9999))


def test_a_box_that_touches_no_detection_gives_no_row() -> None:
    model, images = dense(), noise(2)
    nowhere = (900.0, 900.0, 920.0, 930.0)
    with pytest.warns(konkyo.KonkyoWarning, match="2 of 2 images: nothing detected .* overlaps 900,900,920,930"):
        nothing = konkyo.explain(model, images, method="odam", target=replace(ALL, top=None, boxes=(nowhere,)))
    assert len(nothing) == 0
    third = instances(konkyo.explain(model, images[:1], method="odam", target=ALL))[2]
    wanted = replace(ALL, top=None, boxes=(nowhere, third.box))
    assert instances(konkyo.explain(model, images[:1], method="odam", target=wanted)) == [third]


def test_a_detection_that_hardly_overlaps_the_box_is_told() -> None:
    model, images = dense(), noise(1)
    first = instances(konkyo.explain(model, images, method="odam", target=ALL))[0]
    x1, y1, x2, y2 = first.box
    alone = replace(ALL, top=None, threshold=first.likeness[first.label] - 1e-6)
    third = (x1, y1, x1 + (x2 - x1) / 3, y2)  # a third of the box: an IoU of 0.33 with it
    with pytest.warns(konkyo.KonkyoWarning, match=r"overlaps it by an IoU of 0\.\d+ only"):
        konkyo.explain(model, images, method="odam", target=replace(alone, boxes=(third,)))
    konkyo.explain(model, images, method="odam", target=replace(alone, boxes=(first.box,)))  # a warning fails here


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"quantity": "foo"}, "quantity of an instance 'foo'.*probability"),
        ({"class_similarity": "foo"}, "class_similarity 'foo'.*cosine"),
        ({"least": "a"}, r"least, a similarity, lies in \[0, 1\); got 'a'"),
        ({"least": 1.0}, r"least, a similarity, lies in \[0, 1\); got 1.0"),
        ({"least": -0.1}, r"least, a similarity, lies in \[0, 1\); got -0.1"),
        ({"threshold": "0.3"}, r"threshold of scores lies in \[0, 1\); got '0.3'"),
        ({"threshold": float("nan")}, "threshold of scores .* got nan"),
        ({"classes": 3}, "classes is a list of names or indices; got 3"),
        ({"classes": (1.5,)}, r"classes is a list of names or indices; got \(1.5,\)"),
        ({"classes": (True,)}, r"classes is a list of names or indices; got \(True,\)"),
        ({"top": 1.5}, "top is a number of detections, 1 or more; got 1.5"),
        ({"boxes": 4}, r"boxes is a list of \(x1, y1, x2, y2\)"),
        ({"boxes": (1, 2, 3, 4)}, r"boxes is a list of \(x1, y1, x2, y2\) in pixels; got \(1, 2, 3, 4\)"),
        ({"boxes": [(5, 2, 3, 4)]}, r"x1 < x2 and y1 < y2; got \(5, 2, 3, 4\)"),
        ({"boxes": [(1, 4, 3, 2)]}, r"x1 < x2 and y1 < y2; got \(1, 4, 3, 2\)"),
        ({"boxes": [(1, 2, 1, 4)]}, r"x1 < x2 and y1 < y2; got \(1, 2, 1, 4\)"),
        ({"boxes": [(1, 2, float("nan"), 4)]}, r"numbers of pixels; got \(1, 2, nan, 4\)"),
        ({"boxes": [(1, 2, 3, float("inf"))]}, r"numbers of pixels; got \(1, 2, 3, inf\)"),
        ({"boxes": [(1, 2, 3, "4")]}, r"numbers of pixels; got \(1, 2, 3, '4'\)"),
        ({"boxes": [(0, 0, 9, 9), (1, 4, 3, 2)]}, r"x1 < x2 and y1 < y2; got \(1, 4, 3, 2\)"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_refused_with_what_can(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=says):
        konkyo.Detections(**wrong)


def test_lists_are_taken_as_well_as_tuples() -> None:
    listed = konkyo.Detections(classes=[1, "dog"], boxes=[[1, 2, 3, 4]])  # type: ignore[arg-type, list-item]
    assert listed == konkyo.Detections(classes=(1, "dog"), boxes=((1.0, 2.0, 3.0, 4.0),))


def test_a_score_exactly_at_the_threshold_is_not_kept() -> None:
    box = [0.0, 0.0, 4.0, 4.0]
    output = torch.tensor([[[*box, 0.25, 0.5], [*box, 0.75, 0.125], [*box, 0.5, 0.25]]])
    (kept,) = best_class(output, 0.5, 2)
    assert (kept.index.tolist(), kept.label.tolist()) == ([1], [0])
    (kept,) = best_pairs(output, 0.5, 2)
    assert (kept.index.tolist(), kept.label.tolist()) == ([1], [0])


def test_a_candidate_with_another_box_or_other_probabilities_is_not_the_detection_itself() -> None:
    box, larger = [0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 10.0, 0.9, 0.1]  # IoU 0.8
    own = [*box, 0.5, 0.2]
    less, moved, nearly = [*box, 0.1, 0.2], [5.0, 0.0, 15.0, 8.0, 0.5, 0.2], [0.0, 0.0, 10.0005, 8.0, 0.50005, 0.2]
    target = InstanceTarget(0, (0.0, 0.0, 10.0, 8.0), (0.5, 0.2), 0, class_similarity="probability")
    output = torch.tensor([[first, larger] for first in (own, less, moved, nearly)], dtype=torch.float64)
    assert target.match(output).index.tolist() == [0, 1, 1, 0]  # the last as it comes out of another batch
    assert target(output).tolist() == pytest.approx([0.5, 0.9, 0.9, 0.50005])


# --- methods ----------------------------------------------------------------------------------------------------------


@Blank
@pytest.mark.parametrize("method", ["ig_odam", "adaptive_ig_odam", "path_odam"])
def test_every_image_starts_from_its_own_blurred_self(method: str) -> None:
    model, images = dense(), noise(2)
    result = konkyo.explain(model, images, method=method, target=ALL, nodes=5, baseline="blur")
    assert result.image_index.tolist() == [0, 0, 0, 1, 1, 1]
    for row, target in enumerate(instances(result)):
        image = images[int(result.image_index[row])][None]
        alone = konkyo.explain(model, image, method=method, target=target, nodes=5, baseline="blur")
        scale = float(result.signed[row].abs().max())
        assert scale > 0
        torch.testing.assert_close(alone.signed[0], result.signed[row], rtol=0, atol=1e-6 * scale)


@Blank
@pytest.mark.parametrize("method", ["ig_odam", "adaptive_ig_odam"])
def test_the_path_of_a_combination_is_that_of_the_probability(method: str) -> None:
    model, images = dense(), noise(2)
    combined, probable = (
        konkyo.explain(model, images, method=method, target=replace(ALL, quantity=quantity), nodes=10)
        for quantity in ("combined", "probability")
    )
    assert combined.path is not None
    assert probable.path is not None
    assert combined.path.scores.shape == (6, 10)
    for name in (f.name for f in fields(PathTrace)):
        both = getattr(combined.path, name), getattr(probable.path, name)
        torch.testing.assert_close(*both, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_a_pixel_of_a_hard_mask_belongs_to_the_cell_that_its_centre_lies_in() -> None:
    count, cells, seed = 40, 3, 5
    model, network, images = recorded()
    options = {"masks": count, "cells": cells, "enlarge": "nearest"}
    konkyo.explain(model, images, method="d_rise", target=ALL, seed=seed, **options)
    (shown,) = masks_by_hand(network, images, count)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(count, cells, cells, generator=generator) < 0.5
    strides = [-(-side // cells) for side in SIZE]
    moves = [torch.randint(stride, (count,), generator=generator).tolist() for stride in strides]
    edges = 0

    def cell(pixel: int, stride: int) -> int:
        """Of `cells` cells that are as wide as `cells + 1` strides together."""
        return (2 * pixel + 1) * cells // (2 * (cells + 1) * stride)

    for mask in range(count):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                across, down = x + moves[1][mask], y + moves[0][mask]
                expected = bool(kept[mask, cell(down, strides[0]), cell(across, strides[1])])
                assert (float(shown[mask][y, x]) > 0.5) == expected
                edges += cell(across, strides[1]) != across * cells // ((cells + 1) * strides[1])
    assert edges  # the pixel's left edge lies in another cell


# --- half precision ---------------------------------------------------------------------------------------------------


@Blank
@pytest.mark.parametrize("method", ["ig_odam", "adaptive_ig_odam", "odam"])
def test_in_half_precision_gradients_and_traces_are_of_one_candidate(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = dense(), noise(2)
    model.module.float()
    networks, matches = list[bool](), list[tuple[bool, InstanceTarget, Tensor, Match]]()
    model.module.head.register_forward_hook(lambda *_: networks.append(torch.is_autocast_enabled("cpu")))
    match = InstanceTarget.match

    def spied(target: InstanceTarget, output: Tensor) -> Match:
        found = match(target, output)
        matches.append((torch.is_autocast_enabled("cpu"), target, output.detach().clone(), found))
        return found

    monkeypatch.setattr(InstanceTarget, "match", spied)
    options = {} if method == "odam" else {"nodes": 12}
    result = konkyo.explain(model, images, method=method, target=ALL, precision="bf16", **options)
    assert any(networks)
    assert matches
    assert not any(autocast for autocast, *_ in matches)
    chosen: dict[tuple[object, ...], set[tuple[int, ...]]] = {}
    for _, target, output, found in matches:
        assert output.dtype == torch.float32
        key = target, tuple(output.shape), output.numpy().tobytes()
        chosen.setdefault(key, set()).add(tuple(found.index.tolist()))
    assert {len(indices) for indices in chosen.values()} == {1}
    if result.path is None:
        return
    for row, target in enumerate(instances(result)):
        said = {
            (tuple(found.box[v].tolist()), float(output[v, found.index[v], target.label - CLASSES]))
            for _, of, output, found in matches
            for v in range(len(output))
            if of == target
        }
        for box, score in zip(result.path.boxes[row].tolist(), result.path.scores[row].tolist(), strict=True):
            assert (tuple(box), score) in said


# --- suppression ------------------------------------------------------------------------------------------------------


def test_boxes_that_overlap_by_exactly_the_limit_overlap_by_no_more() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1]]), torch.tensor([0.9, 0.8])  # IoU 0.5
    maps = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])  # correlation 0.71
    assert konkyo.odam_nms(maps, boxes, scores, iou=0.5).tolist() == [0, 1]
    assert konkyo.odam_nms(maps, boxes, scores, iou=0.49).tolist() == [0]


def test_a_correlation_of_exactly_the_limit_suppresses() -> None:
    scores, apart = torch.tensor([0.9, 0.8]), torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6]])
    one, none = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]]]), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert konkyo.odam_nms(one, apart, scores, high=1.0).tolist() == [0]
    assert konkyo.odam_nms(none, apart, scores, high=1e-9).tolist() == [0, 1]
    assert konkyo.odam_nms(none, apart[:1].expand(2, 4), scores, low=0.0).tolist() == [0]


def test_names_of_classes_suppress_as_their_indices_do() -> None:
    names = ["cat", "dog", "cat", "dog", "cow"]
    maps, boxes = torch.ones(5, 1, 2), torch.tensor([[0.0, 0, 2, 2]]).expand(5, 4)
    scores = torch.tensor([0.5, 0.9, 0.8, 0.7, 0.6])
    by_index = konkyo.odam_nms(maps, boxes, scores, torch.tensor([0, 1, 0, 1, 2]))
    assert by_index.tolist() == [1, 2, 4]
    assert konkyo.odam_nms(maps, boxes, scores, names).tolist() == [1, 2, 4]
    assert konkyo.odam_nms(maps, boxes, scores, tuple(names)).tolist() == [1, 2, 4]
    assert konkyo.odam_nms(maps, boxes, scores, [0, 1, 0, 1, 2]).tolist() == [1, 2, 4]


def test_maps_that_are_not_numbers_cannot_be_compared() -> None:
    maps = torch.ones(2, 2, 2)
    maps[1, 0, 1] = torch.nan
    with pytest.raises(konkyo.KonkyoError, match="maps that are not negative"):
        konkyo.odam_nms(maps, torch.tensor([[0.0, 0, 1, 1]]).expand(2, 4), torch.ones(2))


# --- pictures and inputs ----------------------------------------------------------------------------------------------

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "box"}
LETTERBOX = konkyo.Preprocess((24, 48), (24, 48), fit="contain", **PLAIN)  # type: ignore[arg-type]
CROP = konkyo.Preprocess(20, 16, **PLAIN)  # type: ignore[arg-type]


def extent(white: Tensor) -> list[float]:
    """The box of what is white in (H, W)."""
    down, across = (white > 0.5).nonzero(as_tuple=True)
    return [float(v) for v in (across.min(), down.min(), across.max() + 1, down.max() + 1)]


@pytest.mark.parametrize(
    ("preprocess", "size", "painted", "seen", "region"),
    [
        (LETTERBOX, (24, 48), (8, 12, 20, 40), (22, 6, 28, 20), (0.375, 0, 0.625, 1)),  # portrait: 18 pixels beside it
        (LETTERBOX, (96, 24), (10, 4, 50, 20), (5, 8, 25, 16), (0, 0.25, 1, 0.75)),  # 6 above and below
        (CROP, (60, 40), (20, 10, 40, 30), (3, 3, 13, 13), (0, 0, 1, 1)),
        (CROP, (40, 80), (12, 30, 24, 50), (4, 3, 10, 13), (0, 0, 1, 1)),
    ],
    ids=["portrait in a letterbox", "landscape in a letterbox", "landscape cropped", "portrait cropped"],
)
def test_what_the_input_shows_lies_where_the_view_shows_it(
    preprocess: konkyo.Preprocess,
    size: tuple[int, int],
    painted: tuple[int, int, int, int],
    seen: tuple[float, ...],
    region: tuple[float, ...],
) -> None:
    picture = Image.new("RGB", size)
    picture.paste("white", painted)
    frame = preprocess.frame(picture)
    inside = extent(preprocess(picture)[0])
    shown = extent(torch.from_numpy(np.array(preprocess.view(picture).convert("L"))) / 255)
    assert inside == list(seen)
    assert frame.shown(torch.tensor(inside)).tolist() == pytest.approx(shown)
    assert frame.placed(torch.tensor(shown)).tolist() == pytest.approx(inside)
    assert frame.region == pytest.approx(region)


def test_a_view_of_whole_pixels_is_off_by_the_part_of_one() -> None:
    frame = CROP.frame(Image.new("RGB", (39, 26)))  # 30 x 20, of which 7 are cut off at the left and 2 above
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0], [1.0, 2.0, 5.0, 4.0]], dtype=torch.float64)
    expected = [[7 * 1.3 - 9, 2 * 1.3 - 3, 23 * 1.3 - 9, 18 * 1.3 - 3], [1.4, 2.2, 6.6, 4.8]]
    torch.testing.assert_close(frame.shown(boxes), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(frame.placed(frame.shown(boxes)), boxes)
    torch.testing.assert_close(frame.shown(frame.placed(boxes)), boxes)


def test_boxes_of_pictures_of_different_shape_are_each_in_its_own_pixels() -> None:
    model = dense()
    assert model.preprocess is not None
    model = replace(model, preprocess=replace(model.preprocess, crop=SIZE, fit="contain"))
    colours = torch.randint(256, (48 * 96 * 3,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    portrait = Image.fromarray(colours[: 48 * 24 * 3].reshape(48, 24, 3))  # halved, 10 pixels beside it
    landscape = Image.fromarray(colours[: 24 * 96 * 3].reshape(24, 96, 3))  # a third, 8 above and below
    result = konkyo.explain(model, [portrait, landscape], method="ig_odam", nodes=2, target=ALL)
    assert result.regions is not None
    regions = torch.tensor([[10 / 32, 0, 22 / 32, 1]] * 3 + [[0, 1 / 3, 1, 2 / 3]] * 3)
    torch.testing.assert_close(result.regions, regions)
    scales, borders = ([2.0] * 3 + [3.0] * 3), ([(10.0, 0.0)] * 3 + [(0.0, 8.0)] * 3)
    assert result.boxes is not None
    assert result.path is not None
    for row, target in enumerate(instances(result)):
        expected = [(side - borders[row][i % 2]) * scales[row] for i, side in enumerate(target.box)]
        assert result.boxes[row].tolist() == pytest.approx(expected, abs=1e-4)
        assert result.path.boxes[row, -1].tolist() == pytest.approx(expected, abs=1e-4)
    for row in (2, 4):
        wanted = konkyo.Detections(threshold=0.0, boxes=(tuple(result.boxes[row].tolist()),))
        found = konkyo.explain(model, (portrait, landscape)[row // 3], method="odam", target=wanted)
        assert [t.index for t in instances(found)] == [instances(result)[row].index]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("border", "shade"), [(114 / 255, 114), (0.0, 0), (1.0, 255), (None, 51)])
def test_a_letterbox_has_borders_of_its_grey_or_of_the_mean_colour(
    border: float | None, shade: int, channels: int
) -> None:
    mean, std = (0.2,) * channels, (0.25,) * channels
    preprocess = konkyo.Preprocess((4, 8), (4, 8), mean, std, "box", fit="contain", border=border)
    colours = (preprocess.undo(preprocess(Image.new("RGB", (4, 4), (90, 90, 90)))[None]) * 255).round()
    assert colours.unique_consecutive(dim=3).shape == (1, channels, 4, 3)
    assert colours[0, :, :, [0, 1, 6, 7]].unique().tolist() == [shade]
    assert colours[0, :, :, 2:6].unique().tolist() == [90]


@pytest.mark.parametrize("border", [-0.01, 1.01, 114.0, float("nan")])
def test_a_border_is_a_grey_between_black_and_white(border: float) -> None:
    with pytest.raises(konkyo.KonkyoError, match=r"border is a grey from 0 \(black\) to 1 \(white\)"):
        konkyo.Preprocess(border=border)


# --- tokens -----------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A class token, a grid of 2 x 3, and two tokens after it; the head reads them all."""

    class Embed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 9 * 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.linear(images.flatten(1)).view(-1, 9, 4)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = self.Embed(), nn.Linear(9 * 4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.embed(images).tanh().flatten(1))


def test_tokens_after_the_grid_are_left_as_they_are() -> None:
    torch.manual_seed(0)
    network, image = Tokens().eval(), torch.randn(1, 1, 2, 3)
    layer = Layer("embed", network.embed, channel_axis=-1, tokens=(2, 3), prefix=1, call=0)
    with torch.no_grad():
        raw, expected = network.embed(image), network(image)
        grid = layer.fold(raw)
        assert grid.shape == (1, 4, 2, 3)
        assert torch.equal(grid[0, :, 1, 2], raw[0, 6])
        assert torch.equal(layer.unfold(grid, raw), raw)
        changed = layer.unfold(torch.cat([grid, 0 * grid]), raw)
        assert torch.equal(changed[0], raw[0])
        assert torch.equal(changed[1], torch.cat([raw[0, :1], torch.zeros(6, 4), raw[0, 7:]]))
        again = Replay(network, layer, network, image)(torch.cat([grid, grid, grid]))
    torch.testing.assert_close(again, expected.expand(3, 5))

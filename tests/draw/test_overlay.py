from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate

from konkyo.draw import sheets as figures
from konkyo.draw.overlay import DIVERGING, SEQUENTIAL, boxed, colourise, overlay
from konkyo.draw.paths import path_figure
from konkyo.draw.sheets import Cell, Row, contact_sheet, gallery, save_image
from konkyo.engine.path import PathTrace
from konkyo.errors import KonkyoError
from konkyo.targets.detections import InstanceTarget

quick = settings(max_examples=40, deadline=None)


def photo(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=float)


def change(image: Image.Image, other: Image.Image) -> np.ndarray:
    """(h, w) how far the colours differ."""
    return np.abs(pixels(image) - pixels(other)).sum(-1)


def hot(h: int, w: int, row: int, column: int, value: float = 1.0) -> torch.Tensor:
    map_ = torch.zeros(h, w)
    map_[row, column] = value
    return map_


# --- where ------------------------------------------------------------------------------------------------------------


@quick
@given(st.data())
def test_a_hot_cell_stays_in_place(data):
    h, w = data.draw(st.integers(3, 12)), data.draw(st.integers(3, 12))
    row, column = data.draw(st.integers(1, h - 2)), data.draw(st.integers(1, w - 2))
    across, down = data.draw(st.sampled_from([3, 8, 11])), data.draw(st.sampled_from([4, 7, 10]))
    grey = Image.new("RGB", (w * across, h * down), "#808080")
    weight = change(overlay(grey, hot(h, w, row, column)), grey)
    y, x = np.mgrid[: h * down, : w * across]
    assert abs((weight * x).sum() / weight.sum() - ((column + 0.5) * across - 0.5)) < 0.5
    assert abs((weight * y).sum() / weight.sum() - ((row + 0.5) * down - 0.5)) < 0.5


def test_enlarging_comes_before_colouring():
    map_ = torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    grey = Image.new("RGB", (50, 70), "#808080")
    large = interpolate(map_[None, None], size=(70, 50), mode="bilinear", align_corners=False)[0, 0]
    limits = (float(map_.min()), float(map_.max()))
    assert change(overlay(grey, map_), overlay(grey, large, limits=limits)).max() <= 8


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (33, 2), (200, 100), (224, 224)])
def test_any_size_over_any_map(size):
    for shape in ((1, 1), (1, 7), (14, 14), (300, 3)):
        assert overlay(photo(*size), torch.rand(shape)).size == size


def test_large_noisy_maps_are_averaged_not_sampled():
    board = torch.zeros(400, 400)
    board[::2, ::2] = 1
    drawn = pixels(overlay(Image.new("RGB", (50, 50), "#808080"), board, limits=(0, 1)))
    assert drawn[5:-5, 5:-5].std((0, 1)).max() < 2


# --- what is left of the picture --------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.25, 7.0]), st.integers(0, 99))
def test_a_constant_map_leaves_the_picture_as_it_is(h, w, value, seed):
    image = photo(23, 31, seed)
    assert change(overlay(image, torch.full((h, w), value)), image).max() == 0


@quick
@given(st.integers(0, 99), st.booleans())
def test_pixels_away_from_the_map_are_untouched(seed, signed):
    image = photo(80, 60, seed)
    drawn = overlay(image, hot(6, 8, 2, 3, -1 if signed else 1))
    changed = change(drawn, image) > 0
    assert changed[25, 35]
    changed[10:40, 20:60] = False
    assert not changed.any()


def test_brightness_does_not_depend_on_what_else_is_hot():
    image, one, two = photo(), hot(4, 6, 0, 0), hot(4, 6, 0, 0)
    two[3, 5] = 1
    corner = (0, 0, 20, 20)
    assert change(overlay(image, one).crop(corner), overlay(image, two).crop(corner)).max() == 0


def test_the_change_grows_with_the_value():
    image = Image.new("RGB", (101, 1), "#808080")
    moved = change(overlay(image, torch.linspace(0, 1, 101)[None]), image)[0]
    assert (np.diff(moved[:50]) >= -2).all()
    assert moved[50:].min() > 60


@quick
@given(st.integers(0, 10**6))
def test_no_opacity_shows_only_the_photograph_in_grey_where_hot(seed):
    image = photo(20, 20, seed)
    drawn = overlay(image, hot(20, 20, 7, 7), opacity=0)
    assert len(set(drawn.getpixel((7, 7)))) == 1
    assert drawn.getpixel((7, 7))[0] == image.convert("L").getpixel((7, 7))
    assert change(drawn, image).astype(bool).sum() <= 1


def test_full_opacity_shows_the_colour_map_alone():
    import matplotlib

    drawn = overlay(photo(2, 1), torch.tensor([[0.0, 1.0]]), opacity=1)
    assert drawn.getpixel((1, 0)) == matplotlib.colormaps[SEQUENTIAL](1.0, bytes=True)[:3]


def test_the_picture_given_is_not_changed_and_its_mode_does_not_matter():
    image = photo()
    before = image.copy()
    drawn = overlay(image, torch.rand(3, 3))
    assert change(image, before).max() == 0
    assert drawn.mode == "RGB"
    for mode in ("L", "RGBA", "CMYK", "P"):
        assert overlay(image.convert(mode), torch.rand(3, 3)).mode == "RGB"


def test_hot_parts_are_seen_at_thumbnail_size():
    for colour in ("black", "white", "#ff8c00", "#20d020", "#2060ff", "#c000c0", "#ffff00"):
        image = Image.new("RGB", (480, 480), colour)
        small = overlay(image, hot(14, 14, 5, 8)).resize((96, 96), Image.Resampling.BOX)
        assert change(small, image.resize((96, 96))).max() > 60, colour


# --- scale ------------------------------------------------------------------------------------------------------------


def test_limits_are_shared_between_pictures():
    image = photo()
    weak, strong = hot(4, 6, 1, 1, 0.2), hot(4, 6, 1, 1, 1.0)
    assert change(overlay(image, weak), overlay(image, strong)).max() == 0
    limited = overlay(image, weak, limits=(0, 1))
    assert change(limited, image).max() < change(overlay(image, strong, limits=(0, 1)), image).max()
    assert change(overlay(image, strong * 9, limits=(0, 1)), overlay(image, (strong * 9).clamp(max=1))).max() == 0


@quick
@given(st.floats(1e-30, 1e30), st.floats(-3, 3))
def test_scale_and_offset_of_a_sequential_map_do_not_matter(scale, offset):
    map_ = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    image = photo()
    assert change(overlay(image, (map_ + offset) * scale, signed=False), overlay(image, map_)).max() <= 8


def test_small_negatives_on_a_sequential_scale_are_low():
    assert change(overlay(photo(1, 2), torch.tensor([[-5.0], [1.0]]), limits=(0, 1)), photo(1, 2))[0, 0] == 0


# --- signed -----------------------------------------------------------------------------------------------------------


def test_signed_colours_are_symmetric_about_zero():
    map_ = torch.linspace(-1, 1, 101)[None]
    grey = Image.new("RGB", (101, 1), "#808080")
    drawn = pixels(overlay(grey, map_))[0]
    assert (drawn[50] == 128).all()
    assert (drawn[:50, 2] >= drawn[:50, 0]).all()  # blue below zero
    assert (drawn[51:, 0] >= drawn[51:, 2]).all()  # red above
    assert pixels(overlay(grey, -map_))[0] == pytest.approx(drawn[::-1])
    strength = np.abs(drawn - 128).sum(1)
    assert np.abs(strength - strength[::-1]).max() < 60


def test_zero_stays_in_the_middle_of_an_uneven_map():
    image = photo(3, 1)
    drawn = overlay(image, torch.tensor([[-0.1, 0.0, 1.0]]))
    moved = change(drawn, image)[0]
    assert moved[1] == 0
    assert 0 < moved[0] < moved[2]
    even = overlay(image, torch.tensor([[-0.1, 0.0, 1.0]]), limits=(-0.1, 1.0))
    assert change(drawn, even).max() == 0


def test_what_makes_a_map_signed():
    image, map_ = Image.new("RGB", (2, 1), "#808080"), torch.tensor([[0.0, 1.0]])
    sequential, diverging = overlay(image, map_, signed=False), overlay(image, map_, signed=True)
    assert change(sequential, diverging).max() > 0
    assert change(overlay(image, map_), sequential).max() == 0
    assert change(overlay(image, map_, limits=(-1, 1)), diverging).max() == 0
    assert change(overlay(image, -map_, signed=None), overlay(image, -map_, signed=True)).max() == 0


# --- values that are none ---------------------------------------------------------------------------------------------


@quick
@given(st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans(), st.integers(0, 3), st.integers(0, 5))
def test_values_that_are_not_finite_are_hatched_and_spoil_nothing_else(bad, signed, row, column):
    map_ = torch.full((4, 6), 0.5)
    map_[0, 0], map_[3, 5] = (-1.0 if signed else 0.0), 1.0
    broken = map_.clone()
    broken[row, column] = bad
    image = photo(60, 40)
    drawn = overlay(image, broken)
    cell = pixels(drawn)[row * 10 : row * 10 + 10, column * 10 : column * 10 + 10]
    assert set(np.unique(cell)) == {110, 150}
    away = np.ones((40, 60), bool)
    away[max(row * 10 - 10, 0) : row * 10 + 20, max(column * 10 - 10, 0) : column * 10 + 20] = False
    if (row, column) not in ((0, 0), (3, 5)):
        assert change(drawn, overlay(image, map_))[away].max() <= 8  # one level


def test_nothing_but_nan():
    map_ = np.full((3, 3), np.nan)
    for drawn in (overlay(photo(), map_), overlay(photo(), map_, limits=(0, 1)), colourise(map_)):
        assert set(np.unique(pixels(drawn))) == {110, 150}


def test_a_broken_cell_does_not_dim_its_neighbours():
    map_ = torch.ones(1, 4)
    map_[0, 1] = torch.nan
    drawn = pixels(overlay(Image.new("RGB", (40, 10)), map_, limits=(0, 1)))
    assert (drawn[:, :10] == drawn[0, 0]).all()
    assert (drawn[:, 20:] == drawn[0, 0]).all()


# --- kinds of input ---------------------------------------------------------------------------------------------------


def test_tensors_and_arrays_of_any_type():
    image, map_ = photo(), torch.arange(12).reshape(3, 4)
    expected = overlay(image, map_.double())
    for same in (
        *(map_.to(t) for t in (torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.uint8)),
        *(map_.numpy().astype(t) for t in (np.uint16, np.float32, ">f8", np.longdouble)),
        map_.float().requires_grad_(),
        np.asfortranarray(map_.numpy()),
        map_.numpy()[::-1][::-1],
    ):
        assert change(overlay(image, same), expected).max() == 0
    assert change(overlay(image, map_ > 5), overlay(image, (map_ > 5).float())).max() == 0


def test_mistakes_are_named():
    image, map_ = photo(), torch.rand(3, 3)
    for wrong in (torch.rand(1, 3, 3), torch.rand(3), torch.zeros(0, 3)):
        with pytest.raises(KonkyoError, match=r"shape \(h, w\)"):
            overlay(image, wrong)
    for limits in ((1.0, 0.0), (0.0, np.nan), (0.0, np.inf)):
        with pytest.raises(KonkyoError, match="limits"):
            overlay(image, map_, limits=limits)
    with pytest.raises(KonkyoError, match="opacity"):
        overlay(image, map_, opacity=1.5)
    with pytest.raises(KonkyoError, match="colour map 'virids'; did you mean 'viridis'"):
        overlay(image, map_, cmap="virids")


def test_colourise_gives_one_pixel_per_value():
    import matplotlib

    drawn = colourise(torch.tensor([[0.0, 0.5, 1.0]]))
    assert drawn.size == (3, 1)
    assert [drawn.getpixel((x, 0)) for x in (0, 2)] == [
        matplotlib.colormaps[SEQUENTIAL](x, bytes=True)[:3] for x in (0.0, 1.0)
    ]
    signed = pixels(colourise(torch.tensor([[-2.0, 0.0, 1.0]])))[0]
    assert signed[0] == pytest.approx(matplotlib.colormaps[DIVERGING](0.0, bytes=True)[:3])
    assert signed[1] == pytest.approx(matplotlib.colormaps[DIVERGING](0.5, bytes=True)[:3], abs=2)
    assert (
        change(
            colourise(torch.eye(3), cmap="gray"), Image.fromarray(np.eye(3, dtype=np.uint8) * 255).convert("RGB")
        ).max()
        == 0
    )
    assert change(colourise(torch.eye(3), limits=(0, 2)), colourise(torch.eye(3))).max() > 0


# --- contact sheets ---------------------------------------------------------------------------------------------------


def row(*cells: Cell, image: Image.Image | None = None) -> Row:
    return Row(image or photo(), "a.png", "cat  0.98", cells)


def maps(number: int) -> list[Cell]:
    return [Cell(torch.rand(7, 7)) for _ in range(number)]


def count(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == colour).all(-1).sum())


@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (1, 1), (2, 3), (70, 8), (1, 20)])
def test_sheets_of_any_size(rows, columns):
    names = [f"method {i}" for i in range(columns)]
    sheet = contact_sheet([row(*maps(columns))] * rows, names, title="t")
    assert sheet.mode == "RGB"
    lines = 2 if columns == 20 else 1  # many columns stand below each other
    assert (columns // lines + 1) * 176 <= sheet.width <= 2300
    assert sheet.height >= lines * rows * 88
    assert (np.asarray(sheet)[:, -10:] == 255).all()  # nothing reaches the margin


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1000, 10), (10, 1000), (600, 400)])
def test_pictures_of_any_shape(size):
    sheet = contact_sheet([row(*maps(2), image=photo(*size)), row(*maps(2))], ["a", "b"])
    assert max(sheet.size) < 2000


def test_cells_hold_the_overlay_of_the_row(monkeypatch):
    positive, negative = torch.rand(7, 7), -torch.rand(7, 7)
    seen = []

    def spy(image, map_, *, limits=None, signed=None, opacity=figures.OPACITY):
        seen.append((signed, limits))
        return overlay(image, map_, limits=limits, signed=signed, opacity=opacity)

    monkeypatch.setattr(figures, "overlay", spy)
    rows = [row(Cell(positive), Cell(negative))]
    contact_sheet(rows, ["a", "b"], colour_bar=False)
    assert seen == [(False, None), (True, None)]
    seen.clear()
    contact_sheet([row(Cell(positive), Cell(negative)), row(Cell(positive), Cell(positive))], ["a", "b"])
    assert [signed for signed, _ in seen[:4]] == [False, True, False, True]  # a column looks the same throughout
    seen.clear()
    contact_sheet(rows, ["a", "b"], shared=True, colour_bar=False)
    low, high = float(negative.min()), float(positive.max())
    assert seen == [(True, pytest.approx((low, high)))] * 2


def test_the_colour_bar_has_the_colours_of_the_overlay():
    plain = contact_sheet([row(*maps(1))], ["a"], colour_bar=False)
    barred = contact_sheet([row(*maps(1))], ["a"])
    signed = contact_sheet([row(Cell(torch.rand(7, 7) - 0.5))], ["a"])
    assert barred.height == signed.height > plain.height
    grey = Image.new("RGB", (1, 1), "#969696")
    highest = overlay(grey, torch.ones(1, 1), limits=(0, 1)).getpixel((0, 0))
    lowest = overlay(grey, -torch.ones(1, 1)).getpixel((0, 0))
    assert count(barred.crop((0, plain.height, *barred.size)), highest) > 0
    assert count(barred.crop((0, plain.height, *barred.size)), lowest) == 0
    assert count(signed.crop((0, plain.height, *signed.size)), lowest) > 0
    assert count(signed.crop((0, plain.height, *signed.size)), highest) == 0


def test_messages_and_notes():
    message = row(Cell(None, "cam: not applicable: no global average pooling"))
    sheet = contact_sheet([message], ["cam"])
    assert count(sheet, (0xF1, 0xF1, 0xF1)) > 5000
    noted = contact_sheet([row(Cell(torch.rand(7, 7), "the map is blank " * 30))], ["a"])
    assert count(noted, (0x8F, 0x4A, 0x00)) > 20
    assert noted.height > contact_sheet([row(*maps(1))], ["a"]).height
    for cell in (Cell(None), Cell(None, "x" * 5000), Cell(np.full((2, 2), np.nan)), Cell(torch.zeros(1, 1))):
        for shared in (False, True):
            contact_sheet([row(cell)], ["a"], shared=shared)


def test_mistaken_sheets():
    with pytest.raises(KonkyoError, match="at least one row"):
        contact_sheet([], ["a"])
    with pytest.raises(KonkyoError, match="1 cells for 2 columns"):
        contact_sheet([row(*maps(1))], ["a", "b"])


# --- boxes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(10, 5, 40, 30), (10.4, 4.6, 39.7, 30.2)])
def test_a_box_is_a_white_line_between_dark_ones(box):
    image = Image.new("RGB", (60, 40), "#808080")
    drawn = pixels(boxed(image, box, width=1, edge=1))
    for inset, ink in ((-1, 0), (0, 255), (1, 0)):
        x1, y1, x2, y2 = 10 + inset, 5 + inset, 40 - inset, 30 - inset
        assert (drawn[[y1, y2], x1 : x2 + 1] == ink).all()
        assert (drawn[y1 : y2 + 1, [x1, x2]] == ink).all()
    assert (drawn[7:29, 12:39] == 128).all()
    outside = change(image, boxed(image, box, width=1, edge=1))
    outside[4:32, 9:42] = 0
    assert not outside.any()
    assert (pixels(image) == 128).all()


@pytest.mark.parametrize(
    "box", [(-20, -9, 90, 70), (-20, 5, -10, 9), (70, 50, 90, 60), (20, 20, 20, 20), (5, 5, 6, 6), (30, 20, 10, 5)]
)
def test_every_box_is_drawn_within_the_picture(box):
    for size in ((60, 40), (7, 4)):
        drawn = boxed(Image.new("RGB", size, "#808080"), box)
        assert drawn.size == size
        assert (pixels(drawn) == 255).all(-1).any()


def test_no_box_where_there_is_none():
    image = photo()
    assert boxed(image, (1, float("nan"), 5, 5)) is image


def test_a_row_of_a_sheet_draws_its_box_in_every_cell():
    grey, side = Image.new("RGB", (60, 40), "#808080"), 320
    plain, drawn = (
        contact_sheet([Row(grey, "t", cells=[Cell(torch.zeros(4, 4)), Cell(None, "none")], box=box)], ["a", "b"])
        for box in (None, (15, 10, 45, 30))
    )
    changed = change(plain, drawn) > 0
    scale, top = side / 60, 16 + 17 + 5
    y, x = np.nonzero(changed)
    assert abs(y.min() - top - 10 * scale) <= 3
    assert abs(y.max() - top - 30 * scale) <= 3
    assert abs(x.min() - 16 - 15 * scale) <= 3
    assert abs(x.max() - 16 - side - 10 - 45 * scale) <= 3  # in the second panel; in the message there is none
    middle = changed[top + round(20 * scale)]
    assert not middle[16 + round(20 * scale) : 16 + round(40 * scale)].any()


@pytest.mark.parametrize(("count", "across", "down"), [(1, 2, 1), (4, 5, 1), (5, 3, 2), (9, 5, 2), (11, 4, 3)])
def test_a_gallery_is_as_even_as_can_be(count, across, down):
    rows = [Row(photo(), "a.jpg", f"thing {n}", [Cell(torch.rand(5, 5))], (5, 5, 30, 30)) for n in range(count)]
    sheet = gallery(rows, colour_bar=False)
    assert sheet.width == across * 320 + (across - 1) * 10 + 32
    assert down * 213 < sheet.height < down * 213 + 32 + down * 60


# --- paths ------------------------------------------------------------------------------------------------------------


def walk(scores, boxes, priorities=(0.1, 0.5, 0.2), method="ig_odam", alphas=(0.0, 0.25, 0.5, 1.0)):
    padded = [float("nan")]  # as of a row with fewer nodes than another
    trace = PathTrace(
        torch.tensor([[*alphas, *padded]]),
        torch.tensor([[*priorities, *padded]]),
        torch.tensor([[*scores, *padded]]),
        torch.tensor([[*boxes, padded * 4]]),
    )
    target = InstanceTarget(0, tuple(boxes[-1]), (0.9, 0.1), 3)
    return SimpleNamespace(path=trace, method=method, labels=("cat",), targets=(target,))


HERE, THERE, NOWHERE = [0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [float("nan")] * 4
SCORES = (0.0, 0.2, 0.9, 0.8)


def across(alpha, width):
    """Where alpha is in a picture of a path."""
    return (0.105 + 0.87 * (alpha + 0.01) / 1.02) * width


def test_a_path_shows_scores_above_boxes_in_the_middle_and_priorities_below():
    usual = path_figure(walk(SCORES, [THERE, HERE, HERE, HERE]))
    height, width = pixels(usual).shape[:2]

    def changed(figure):
        return np.nonzero(change(usual, figure) > 60)  # lines are smoothed a little anew as a whole

    score = changed(path_figure(walk((0.0, 0.3, 0.9, 0.8), [THERE, HERE, HERE, HERE])))
    box = changed(path_figure(walk(SCORES, [THERE, THERE, HERE, HERE])))
    priority = changed(path_figure(walk(SCORES, [THERE, HERE, HERE, HERE], (0.1, 0.5, 0.4))))
    assert score[0].max() < box[0].min() < box[0].max() < priority[0].min() < height
    for found, low, high in ((score, 0, 0.5), (box, 0, 0.5), (priority, 0.5, 1)):
        assert across(low, width) - 5 < found[1].min() < across(low, width) + 6
        assert across(high, width) - 6 < found[1].max() < across(high, width) + 5


def test_a_node_without_the_detection_is_hollow():
    """And counts as far away: its node in the middle is where 1 - IoU is 1."""
    filled, hollow = (
        pixels(path_figure(walk((0.0, 0.0, 0.9, 0.8), [HERE, box, HERE, HERE]))) for box in (HERE, NOWHERE)
    )
    x = round(across(0.25, filled.shape[1]))
    score = filled.shape[0] // 2
    assert ((filled != hollow).any(-1)[:score, x - 3 : x + 4]).any()
    bright = (hollow == 255).all(-1)[:score, x] & (filled != 255).any(-1)[:score, x]
    assert 2 <= bright.sum() <= 6  # the inside of the dot
    away = hollow[score:, x - 3 : x + 4]
    assert (away != filled[score:, x - 3 : x + 4]).any()


def test_bars_are_as_wide_as_their_intervals():
    drawn = pixels(path_figure(walk(SCORES, [HERE] * 4, (0.5, 0.0, 0.5))))
    row = drawn[-70]  # through the bars, near their feet
    blue = (np.abs(row - (0x2F, 0x6D, 0xB5)) < 8).all(-1)
    for low, high, there in ((0, 0.25, True), (0.25, 0.5, False), (0.5, 1, True)):
        inside = blue[round(across(low, len(row))) + 3 : round(across(high, len(row))) - 2]
        assert inside.all() if there else not inside.any()


def test_several_paths_are_drawn_together():
    one, other = walk(SCORES, [HERE] * 4), walk((0.1, 0.3, 0.8, 0.8), [HERE] * 4, method="adaptive_ig_odam")
    single, both = path_figure(one), path_figure([one, other])
    assert both.width == single.width
    assert both.height > single.height
    orange = (np.abs(pixels(both) - (0xD9, 0x56, 0x2B)) < 8).all(-1)
    assert orange.any(1).sum() > 100
    assert not (np.abs(pixels(single) - (0xD9, 0x56, 0x2B)) < 8).all(-1).any()


def test_a_path_of_what_is_no_detection_has_no_boxes():
    plain = walk(SCORES, [NOWHERE] * 4)
    plain.targets = (SimpleNamespace(score="logit"),)
    assert path_figure(plain).height < path_figure(walk(SCORES, [HERE] * 4)).height
    assert path_figure(walk((0.8,), [HERE], (), alphas=(1.0,))).width  # a single node


def test_paths_that_cannot_be_drawn():
    none = SimpleNamespace(path=None, method="odam", labels=("cat",), targets=(None,))
    with pytest.raises(KonkyoError, match="odam keeps no path"):
        path_figure(none)
    with pytest.raises(KonkyoError, match="row 1 of an explanation with 1"):
        path_figure(walk(SCORES, [HERE] * 4), 1)
    with pytest.raises(KonkyoError, match="at least one"):
        path_figure([])


def test_nothing_that_draws_is_imported_before_it_is_needed_and_a_path_leaves_pyplot_alone():
    code = (
        "import sys, konkyo.draw.overlay, konkyo.draw.sheets; print('matplotlib' in sys.modules);"
        f"import torch; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "from test_overlay import HERE, SCORES, walk, path_figure;"
        "path_figure(walk(SCORES, [HERE] * 4)); print('matplotlib.pyplot' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\nFalse\n"


# --- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.webp", "D.PNG", "new/folder/e.png"])
def test_saved_pictures_are_whole(tmp_path, name):
    path = save_image(photo(), tmp_path / name)
    assert path == tmp_path / name
    with Image.open(path) as image:
        assert image.size == photo().size
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    save_image(photo(10, 10), str(path))  # over the old one
    with Image.open(path) as image:
        assert image.size == (10, 10)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_image(photo(), tmp_path / "a.png")
    before = path.read_bytes()

    def fail(self, to, **_):
        to.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(KonkyoError, match="No space left"):
        save_image(photo(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_cannot_be_saved(tmp_path):
    for name in ("a", "a.txt", "a.unknown"):
        with pytest.raises(KonkyoError, match=r"\.png"):
            save_image(photo(), tmp_path / name)
    with pytest.raises(KonkyoError, match="cannot be written"):
        save_image(photo().convert("RGBA"), tmp_path / "a.jpg")
    with pytest.raises(KonkyoError, match="cannot be written"):
        save_image(Image.new("RGB", (17000, 1)), tmp_path / "a.webp")
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_outlined_and_a_small_one_ringed() -> None:
    """The white line lies just outside of the part; of a part of one pixel a ring tells where it is."""
    from konkyo.draw.overlay import outlined

    part = torch.zeros(50, 50)
    part[10:30, 20:40] = 1
    drawn = np.asarray(outlined(Image.new("RGB", (50, 50), "green"), part, width=1)).astype(int)
    white = (drawn == 255).all(2)
    expected = np.zeros((50, 50), bool)
    expected[9:31, 19:41] = True
    expected[10:30, 20:40] = False
    assert (white == expected).all()
    assert (drawn[15:25, 25:35] == [0, 128, 0]).all()
    assert (drawn[:5] == [0, 128, 0]).all()
    small = torch.zeros(100, 100)
    small[40, 60] = 1
    ringed = np.asarray(outlined(Image.new("RGB", (100, 100), "green"), small)).astype(int)
    rows, columns = np.nonzero((ringed == 255).all(2))
    assert rows.min() < 36 < 44 < rows.max()
    assert columns.min() < 56 < 64 < columns.max()

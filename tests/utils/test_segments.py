"""Segments: numbered without gaps, of the prepared image's own colours, by scikit-image, a grid or the user."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

import konkyo
from helpers.networks import SmallResNet, seeded
from konkyo.utils.segments import segments_of

KINDS = ["slic", "quickshift", "felzenszwalb", "grid"]
BLACK, WHITE = torch.tensor([-2.0, -1.0, 0.5]), torch.tensor([2.0, 3.0, 2.5])


def quarters() -> Tensor:
    """A picture (1, 3, 24, 32) in [0, 1] of four colours, a quarter each."""
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.9, 0.9, 0.8]])
    return colours.view(2, 2, 3).permute(2, 0, 1).repeat_interleave(12, 1).repeat_interleave(16, 2)[None]


def prepared(picture: Tensor) -> Tensor:
    low, high = (pixel.view(1, 3, 1, 1) for pixel in (BLACK, WHITE))
    return low + picture * (high - low)


@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_numbered_from_0_without_gaps(kind: str) -> None:
    x = prepared(torch.rand(2, 3, 24, 32).repeat_interleave(2, 2)[:, :, :24])
    segments = segments_of(x, kind, 6, black=BLACK, white=WHITE)
    assert segments.shape == (2, 24, 32)
    assert segments.dtype == torch.int64
    for one in segments:
        assert torch.equal(one.unique(), torch.arange(int(one.max()) + 1))


@pytest.mark.parametrize("kind", ["slic", "felzenszwalb", "quickshift"])
def test_colours_decide_and_not_the_preparation(kind: str) -> None:
    """The four colours come apart, as scikit-image divides the picture itself."""
    from skimage import segmentation

    picture = quarters()
    array = picture[0].permute(1, 2, 0).double().numpy()
    theirs = {
        "slic": lambda: segmentation.slic(array, n_segments=4, compactness=10, start_label=0),
        "felzenszwalb": lambda: segmentation.felzenszwalb(array, scale=100, sigma=0.5, min_size=24 * 32 // 20),
        "quickshift": lambda: segmentation.quickshift(array, kernel_size=4, max_dist=200, ratio=0.2),
    }[kind]()
    expected = torch.as_tensor(np.unique(theirs, return_inverse=True)[1]).view(24, 32)
    found = segments_of(prepared(picture), kind, 4, black=BLACK, white=WHITE)[0]
    assert torch.equal(found, expected)
    if kind != "quickshift":
        assert found.max() == 3
        assert all(len(found[r : r + 12, c : c + 16].unique()) == 1 for r in (0, 12) for c in (0, 16))
    half = segments_of(prepared(picture).bfloat16(), kind, 4, black=BLACK, white=WHITE)[0]
    assert half.shape == found.shape


def test_an_image_whose_preparation_is_not_known_is_scaled_by_its_own_range() -> None:
    zero, one = torch.tensor([0.0]), torch.tensor([1.0])
    picture = (quarters() - 0.1) / 0.8  # from 0 to 1
    known = segments_of(picture, "slic", 4, black=zero, white=one)
    assert torch.equal(segments_of(picture * 6 - 3, "slic", 4, black=zero, white=one), known)
    assert known.max() == 3


def test_one_channel_is_a_grey_picture() -> None:
    grey = quarters()[:, 2:]
    zero, one = torch.tensor([0.0]), torch.tensor([1.0])
    as_three = segments_of(grey.expand(1, 3, 24, 32), "slic", 5, black=zero, white=one)
    assert torch.equal(segments_of(grey, "slic", 5, black=zero, white=one), as_three)


def test_a_grid_has_cells_of_one_size_and_any_number_of_axes() -> None:
    x = torch.zeros(2, 3, 24, 32)
    grid = segments_of(x, "grid", 12, black=BLACK, white=WHITE)
    expected = torch.arange(12).view(3, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(grid, expected.expand(2, 24, 32))
    assert torch.equal(
        segments_of(x, "grid", (2, 5), black=BLACK, white=WHITE)[0, 0].bincount(), torch.tensor([7, 6, 7, 6, 6])
    )
    assert segments_of(torch.zeros(1, 2, 10), "grid", 5, black=BLACK, white=WHITE).tolist() == [
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    ]
    assert segments_of(torch.zeros(1, 1, 4, 8, 8), "grid", 32, black=BLACK, white=WHITE).max() == 31
    assert segments_of(x, "grid", 10**6, black=BLACK, white=WHITE).max() == 24 * 32 - 1


def test_volumes_have_slic_and_no_quickshift() -> None:
    volume = torch.zeros(1, 1, 4, 12, 12)
    volume[..., 6:] = 1
    zero, one = torch.tensor([0.0]), torch.tensor([1.0])
    assert segments_of(volume, "slic", 2, black=zero, white=one).shape == (1, 4, 12, 12)
    with pytest.raises(konkyo.NotApplicable, match=r'quickshift divides pictures.*segments="grid"'):
        segments_of(volume, "quickshift", 2, black=zero, white=one)
    with pytest.raises(konkyo.NotApplicable, match="slic divides pictures"):
        segments_of(torch.zeros(1, 1, 40), "slic", 2, black=zero, white=one)


@pytest.mark.parametrize("as_array", [False, True])
def test_segments_of_the_users_own(as_array: bool) -> None:
    own = torch.tensor([[7, 7, 3], [9, 3, 3]])
    x = torch.zeros(2, 3, 2, 3)
    given = own.numpy() if as_array else own
    found = segments_of(x, given, black=BLACK, white=WHITE)
    assert torch.equal(found, torch.tensor([[1, 1, 0], [2, 0, 0]]).expand(2, 2, 3))
    each = torch.stack([own, own * 0])
    assert segments_of(x, each, black=BLACK, white=WHITE)[1].max() == 0


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [
        ("superpixels", 5, "unknown kind of segments 'superpixels'.*On offer: slic"),
        (None, 5, "unknown kind of segments"),
        (torch.zeros(4, 4, dtype=torch.int64), 5, r"whole numbers of shape \(8, 8\).*got \(4, 4\)"),
        (torch.zeros(8, 8), 5, r"whole numbers.*got \(8, 8\) torch.float32"),
        ("slic", 0, "count is a whole number of segments, 1 or more"),
        ("slic", (3, 3), "count is a whole number of segments"),
        ("grid", (3, 3, 3), r"count of a grid on \(8, 8\) places"),
        ("grid", (9, 1), "count of a grid"),
        ("grid", 0, "count of a grid"),
        ("grid", 2.5, "count of a grid"),
    ],
)
def test_what_is_no_segmentation_is_refused(kind: object, count: object, message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        segments_of(torch.rand(1, 3, 8, 8), kind, count, black=BLACK, white=WHITE)


def test_without_scikit_image_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(konkyo.NotApplicable, match=r'needs scikit-image: pip install .*segments="grid" does without'):
        segments_of(torch.rand(1, 3, 8, 8), "slic", 5, black=BLACK, white=WHITE)
    assert segments_of(torch.rand(1, 3, 8, 8), "grid", 4, black=BLACK, white=WHITE).max() == 3


def test_a_probe_gives_every_row_the_segments_of_its_image_and_finds_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []

    def function(inputs: Tensor, segments: object, white: Tensor, black: Tensor) -> Tensor:
        found.append(segments("slic", 4))  # type: ignore[operator]
        assert torch.equal(segments("slic", 4), found[-1])  # type: ignore[operator]
        assert float(white[0, 1, 0, 0]) == pytest.approx((1 - 0.4) / 0.2)
        assert float(black[0, 1, 0, 0]) == pytest.approx(-0.4 / 0.2)
        return inputs[:, 0]

    from skimage import segmentation

    calls, slic = [], segmentation.slic
    monkeypatch.setattr(segmentation, "slic", lambda *a, **k: calls.append(1) or slic(*a, **k))
    preprocess = konkyo.Preprocess(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.5))
    model = konkyo.Model(seeded(SmallResNet(), double=False), preprocess=preprocess)
    assert model.white == pytest.approx((2.0, 3.0, 1.4))
    assert konkyo.Model(seeded(SmallResNet())).white == (1.0,)
    needs = ("inputs", "segments", "white", "black")
    method = konkyo.Method("of_segments", function, False, "input", "logit", needs, {})
    x = torch.stack([quarters()[0], quarters()[0].flip(-1)])
    x = (x - torch.tensor(preprocess.mean).view(3, 1, 1)) / torch.tensor(preprocess.std).view(3, 1, 1)
    konkyo.explain(model, x, method=method, target=konkyo.Each(1, 3))
    assert found[0].shape == (4, 24, 32)
    assert torch.equal(found[0][0], found[0][1])
    assert len(calls) == 2  # one per image

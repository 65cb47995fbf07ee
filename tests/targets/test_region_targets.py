"""Regions of dense outputs: what is averaged, where a place of the picture lies in an output, how one is asked for."""

import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage

from konkyo import KonkyoError, Mask, Pixel, Region, RegionTarget
from konkyo.data.frame import Frame
from konkyo.targets.regions import box_on_grid, component_of, mask_on_grid
from konkyo.targets.specs import parse_target


def test_the_mean_of_every_score_is_that_of_loops():
    output, weights = torch.randn(2, 4, 3, 5), torch.rand(3, 5)
    target = Mask(weights)
    for score, values in {
        "logit": output,
        "probability": output.softmax(1),
        "sigmoid": 1 / (1 + (-output).exp()),
        "margin": torch.stack([output[:, k] - output[:, [j for j in range(4) if j != k]].amax(1) for k in range(4)], 1),
    }.items():
        expected = [
            sum(float(weights[y, x] * values[n, 2, y, x]) for y in range(3) for x in range(5)) / float(weights.sum())
            for n in range(2)
        ]
        torch.testing.assert_close(RegionTarget(2, target, score)(output), torch.tensor(expected))


def test_the_gradient_is_constant_in_the_region_and_none_outside():
    output = torch.randn(1, 3, 4, 4, requires_grad=True)
    inside = torch.rand(4, 4) > 0.5
    (gradient,) = torch.autograd.grad(RegionTarget(1, Mask(inside))(output).sum(), output)
    expected = torch.zeros(1, 3, 4, 4)
    expected[0, 1] = inside / inside.sum()
    torch.testing.assert_close(gradient, expected)


def test_half_precision_is_averaged_in_single_precision():
    output = torch.full((1, 2, 300, 300), 3.0, dtype=torch.float16)
    assert RegionTarget(0)(output).tolist() == [3.0]


def test_shares_of_the_output_count_cells_by_what_lies_in_them():
    weights = RegionTarget(0, (0.125, 0.0, 0.5, 0.75)).weights((4, 4))
    columns = torch.tensor([0.5, 1.0, 0.0, 0.0])
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None] * columns)


def test_masks_of_equal_weights_are_equal_and_travel():
    mask = Mask(torch.rand(5, 7))
    again = pickle.loads(pickle.dumps(RegionTarget(1, mask, "margin", "pixel 1,2")))
    assert again == RegionTarget(1, mask, "margin", "pixel 1,2")
    assert hash(again.region) == hash(mask)
    assert again != RegionTarget(1, Mask(mask.weights.flip(0)), "margin", "pixel 1,2")
    region = pickle.loads(pickle.dumps(Region("cat", within=np.eye(4, dtype=bool))))
    assert region == Region("cat", within=torch.eye(4))
    assert hash(region) == hash(Region("cat", within=torch.eye(4)))


def test_a_mask_lies_on_another_grid_by_area():
    mask = torch.zeros(4, 8)
    mask[:2, :3] = 1
    torch.testing.assert_close(Mask(mask).at((2, 2)), torch.tensor([[0.75, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("shape", [(48, 60), (47, 61), (20, 100)])
def test_a_mask_of_the_picture_is_averaged_over_cells(shape):
    """Held against the mean of a picture in which every pixel was repeated so often that cells are whole pixels."""
    mask = torch.rand(shape) > 0.5
    height, width = 24, 32  # of the input, the picture stretched to it
    frame = Frame((shape[1] / width, shape[0] / height), size=(height, width))
    size = (6, 8)
    fine = np.kron(mask.numpy(), np.ones((size[0], size[1])))  # shape * size pixels: divisible by size
    cells = fine.reshape(size[0], shape[0], size[1], shape[1]).mean((1, 3))
    torch.testing.assert_close(mask_on_grid(Mask(mask), size, frame), torch.tensor(cells).float())


def test_a_box_is_the_mask_of_its_pixels():
    frame = Frame((1.5, 2.0), size=(20, 30))  # a picture of 45 x 40
    mask = torch.zeros(40, 45)
    mask[7:19, 11:30] = 1
    torch.testing.assert_close(box_on_grid((11, 7, 30, 19), (5, 10), frame), mask_on_grid(Mask(mask), (5, 10), frame))


def test_a_picture_with_a_border_lies_in_the_middle_of_its_input():
    # A picture of 40 x 20 in an input of 40 x 40: ten rows of border above and below.
    frame = Frame((1.0, 1.0), (0.0, -10.0), (0.0, 0.25, 1.0, 0.75), (40, 40))
    weights = box_on_grid((0, 0, 40, 20), (4, 4), frame)
    torch.testing.assert_close(weights, torch.tensor([0.0, 1.0, 1.0, 0.0])[:, None].expand(4, 4))
    whole = mask_on_grid(Mask(torch.ones(20, 40)), (4, 4), frame)
    torch.testing.assert_close(whole, weights)


def test_components_are_those_of_scipy():
    region = (torch.rand(30, 40) > 0.62).float()
    labels, count = ndimage.label(region.numpy(), np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    for number in (1, 2):
        wanted = sorted(sizes, reverse=True)[number - 1]
        part = component_of(region, number)
        assert int(part.sum()) == wanted
        inside = labels[part.numpy() > 0]
        assert len(set(inside.tolist())) == 1
        assert sizes[inside[0] - 1] == wanted
    with pytest.raises(KonkyoError, match=f"has {count} connected parts"):
        component_of(region, count + 1)


def test_targets_in_words():
    assert parse_target("region:road") == Region("road")
    assert parse_target("region:3,within=all,score=margin") == Region(3, "all", score="margin")
    assert parse_target("region:road,mask=a/m.png") == Region("road", "a/m.png")
    assert parse_target("region:,box=10:20:80:90,component=1") == Region(None, None, (10, 20, 80, 90), 1)
    assert parse_target("pixel:120:64") == Pixel(120, 64)
    assert parse_target("pixel:120:64,label=road,score=probability") == Pixel(120, 64, "road", "probability")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegionTarget(0, score="best"), "did you mean|On offer: logit"),
        (lambda: RegionTarget(4)(torch.zeros(1, 4, 2, 2)), "class 4 of an output"),
        (lambda: RegionTarget(0)(torch.zeros(1, 4)), "got \\(1, 4\\)"),
        (lambda: RegionTarget(0, score="margin")(torch.zeros(1, 1, 2, 2)), "one channel"),
        (lambda: RegionTarget(0, (0.5, 0, 0.5, 1)), "shares of the output"),
        (lambda: Mask(torch.zeros(3, 3)), "empty"),
        (lambda: Mask(torch.full((3, 3), 2.0)), "from 0 to 1"),
        (lambda: Region("a", within=torch.ones(3, 3, 3)), "\\(H, W\\)"),
        (lambda: Region("a", within=object()), '"predicted", "all"'),
        (lambda: Region("a", box=(1, 2, 1, 4)), "x1 < x2"),
        (lambda: Region("a", component=0), "1 for the largest"),
        (lambda: Region(1.5), "name or index"),
        (lambda: Pixel(-1, 2), "from 0"),
        (lambda: Pixel(1, "2"), "y='2'"),
        (
            lambda: box_on_grid((50, 0, 60, 5), (4, 4), Frame(size=(20, 40))),
            "outside of what the network sees of the picture: x from 0 to 40",
        ),
        (lambda: box_on_grid((0, 20.5, 5, 30), (4, 4), Frame(size=(20, 40))), "y from 0 to 20"),
        (lambda: mask_on_grid(Mask(torch.ones(9, 9)), (4, 4), Frame(size=(20, 40))), "40 x 20 pixels; got 9 x 9"),
        (lambda: box_on_grid((0, 0, 1, 1), (4, 4), Frame()), "size of the network's input is not known"),
        (lambda: parse_target("pixel:12"), "X:Y"),
        (lambda: parse_target("region:a,colour=red"), "within=VALUE"),
        (lambda: parse_target("region:a,within=all,mask=m.png"), "both say where"),
    ],
)
def test_what_cannot_be_is_said_in_words(make, message):
    with pytest.raises(KonkyoError, match=message):
        make()


def test_a_mask_is_averaged_over_the_area_of_cells_that_do_not_fit():
    torch.testing.assert_close(Mask(torch.tensor([1.0, 0.0, 0.0])).at((2,)), torch.tensor([2 / 3, 0.0]))
    fine, size = torch.rand(5, 7), (3, 4)
    steps = fine.repeat_interleave(3, 0).repeat_interleave(4, 1)  # 15 x 28 whole cells of both grids
    expected = steps.view(3, 5, 4, 7).mean((1, 3))
    torch.testing.assert_close(Mask(fine).at(size), expected)

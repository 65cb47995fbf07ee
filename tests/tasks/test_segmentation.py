"""Segmentation: what is explained of a dense output, against closed forms and transcriptions by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import konkyo
from konkyo import Against, ContrastTarget, Each, KonkyoError, Mask, Pixel, Region, RegionTarget, SumTarget, TopK
from konkyo.tasks.base import TargetRequest

pytestmark = pytest.mark.filterwarnings("ignore:(grad|hires)_cam:konkyo.KonkyoWarning")  # of outputs like these
NAMES = ("background", "road", "tree", "sky")


class Linear(nn.Module):
    """A backbone and a head that is one 1x1 convolution: z_c = w_c . A in every cell."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1))
        self.head = nn.Conv2d(8, classes, 1, bias=False)

    def forward(self, images):
        return self.head(self.backbone(images))


def model_of(module=None, **task):
    task = konkyo.SegmentationTask(**task)
    preprocess = konkyo.Preprocess((32, 48), None)
    classes = NAMES[: (module or Linear()).head.out_channels] if module is None else ()
    return konkyo.Model((module or Linear()).eval(), preprocess, classes, "net", task=task)


class Given(nn.Module):
    """A network whose output is its image's first channels, times a weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.features = nn.Conv2d(channels, channels, 1, bias=False)
        self.features.weight.data = torch.eye(channels)[:, :, None, None]

    def forward(self, images):
        return self.features(images)


def given(output, **task):
    """(a model of four classes, images) whose output is this one."""
    network = konkyo.Model(Given(output.shape[1]).eval(), None, (), "given", task=konkyo.SegmentationTask(**task))
    names = NAMES if output.shape[1] == 4 else ()
    return konkyo.Model(network.module, None, names, "given", task=network.task), output


def one_hot(labels, classes: int = 4):
    return 3 * nn.functional.one_hot(torch.tensor(labels), classes).permute(2, 0, 1)[None].float()


LABELS = [[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 2, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]


# --- closed forms of a linear head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_grad_cam_of_a_linear_head_is_the_class_map_whatever_the_region(share):
    """The weights are w_c / (h w) for every region, so its map is relu(w_c . A) / (h w) for every one."""
    model, images = model_of(), torch.randn(1, 3, 32, 48)
    region = torch.rand(8, 12) < share
    region[0, 0] = True
    result = konkyo.explain(model, images, target=RegionTarget(2, Mask(region)), layer="backbone", method="grad_cam")
    logits = model.module(images)[:, 2]
    torch.testing.assert_close(result.maps, logits.relu().detach() / (8 * 12))


def test_hires_cam_of_a_linear_head_is_the_class_map_in_the_region():
    model, images = model_of(), torch.randn(1, 3, 32, 48)
    region = torch.rand(8, 12) < 0.4
    target = RegionTarget(1, Mask(region))
    result = konkyo.explain(model, images, target=target, layer="backbone", method="hires_cam")
    torch.testing.assert_close(result.signed, (model.module(images)[:, 1] * region / region.sum()).detach())
    torch.testing.assert_close(result.signed.sum((1, 2)), result.scores)


def test_a_union_of_regions_is_the_mean_of_their_maps():
    model, images = model_of(), torch.randn(1, 3, 32, 48)
    one = torch.zeros(8, 12)
    one[:, :5] = 1
    maps = {}
    for name, mask in {"one": one, "other": 1 - one, "both": torch.ones(8, 12)}.items():
        target = RegionTarget(3, Mask(mask), "probability")
        maps[name] = konkyo.explain(model, images, target=target, layer="backbone", method="hires_cam").signed
    torch.testing.assert_close((40 * maps["one"] + 56 * maps["other"]) / 96, maps["both"])


def test_the_automatic_layer_is_the_backbones_end_and_not_the_head():
    network = Linear()
    network.head = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Upsample(scale_factor=4))
    model = konkyo.Model(network.eval(), task=konkyo.SegmentationTask())
    result = konkyo.explain(model, torch.randn(1, 3, 32, 48), target=RegionTarget(1), method="hires_cam")
    assert result.layer.startswith("backbone")
    assert result.diagnosis[0].ok


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_the_decision_is_the_most_frequent_class_that_is_no_background():
    model, images = given(one_hot(LABELS))
    result = konkyo.explain(model, images, layer="features")
    assert result.labels == ("road",)
    (target,) = result.targets
    torch.testing.assert_close(target.weights((4, 6)), (torch.tensor(LABELS) == 1).float())
    assert result.scores.tolist() == [3.0]
    decision = result.decisions[0]
    softmax = float(torch.tensor([3.0, 0, 0, 0]).softmax(0)[0])
    assert (decision.label, decision.rank) == ("road", 1)
    assert abs(decision.probability - softmax) < 1e-6


def test_top_k_are_the_most_frequent_and_the_background_only_alone():
    model, images = given(one_hot(LABELS))
    assert konkyo.explain(model, images, target=TopK(5), layer="features").labels == ("road", "tree")
    model, images = given(one_hot([[0] * 6] * 4))
    assert konkyo.explain(model, images, layer="features").labels == ("background, all of the picture",)


def test_a_class_that_is_nowhere_names_those_that_are():
    model, images = given(one_hot(LABELS))
    with pytest.raises(KonkyoError, match=r"'sky' is predicted nowhere.*background 75.0%, road 20.8%, tree 4.2%.*all"):
        konkyo.explain(model, images, target="sky", layer="features")
    assert konkyo.explain(model, images, target=Region("sky", "all"), layer="features").scores.tolist() == [0.0]


def test_a_component_of_a_class_and_what_lies_in_a_box_of_it():
    model, images = given(one_hot(LABELS))
    # The cell at (3, 3) touches (2, 2) at a corner, so all of the road is one part.
    first = konkyo.explain(model, images, target=Region("road", component=1), layer="features").targets[0]
    assert first.weights((4, 6)).sum() == 5
    boxed = konkyo.explain(model, images, target=Region("road", "predicted", (0, 0, 3, 2)), layer="features")
    assert boxed.targets[0].weights((4, 6)).nonzero().tolist() == [[1, 1], [1, 2]]
    assert boxed.labels == ("road, box 0,0,3,2",)
    whole = konkyo.explain(model, images, target=Region("road", box=(0, 0, 3, 2)), layer="features").targets[0]
    assert whole.weights((4, 6)).sum() == 6


def test_a_pixel_is_one_cell_and_the_class_decided_on_there():
    output = torch.randn(1, 4, 4, 6)
    model, images = given(output)
    result = konkyo.explain(model, images, target=Each(Pixel(4, 1), Pixel(4, 1, "sky")), layer="features")
    best = int(output[0, :, 1, 4].argmax())
    assert result.labels == (f"{NAMES[best]}, pixel 4,1", "sky, pixel 4,1")
    torch.testing.assert_close(result.scores, torch.stack([output[0, best, 1, 4], output[0, 3, 1, 4]]))


def test_a_pixel_of_a_picture_is_found_where_the_picture_was_resized_to():
    """A picture of 96 x 64 becomes an input of 48 x 32 and an output of 12 x 8: eight pixels a cell, each way."""
    model = model_of()
    picture = Image.fromarray(np.random.randint(0, 255, (64, 96, 3), np.uint8))
    result = konkyo.explain(model, picture, target=Pixel(70, 33, "tree"), layer="backbone")
    assert result.targets[0].weights((8, 12)).nonzero().tolist() == [[33 // 8, 70 // 8]]


def test_a_mask_of_the_picture_is_averaged_over_the_outputs_cells(tmp_path):
    model = model_of()
    picture = Image.fromarray(np.random.randint(0, 255, (64, 96, 3), np.uint8))
    mask = np.random.rand(64, 96) > 0.7
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.png")
    given_as = (mask, torch.from_numpy(mask), tmp_path / "m.png", str(tmp_path / "m.png"))
    targets = [
        konkyo.explain(model, picture, target=Region("tree", within=within), layer="backbone").targets[0]
        for within in given_as
    ]
    expected = torch.tensor(mask.reshape(8, 8, 12, 8).mean((1, 3))).float()
    for target in targets:
        torch.testing.assert_close(target.region.weights, expected)
    assert targets[2].where == "mask m.png"
    with pytest.raises(KonkyoError, match="96 x 64 pixels; got 6 x 5"):
        konkyo.explain(model, picture, target=Region("tree", within=np.ones((5, 6))), layer="backbone")


def test_a_contrast_with_a_class_is_over_the_same_region():
    output = torch.randn(1, 4, 4, 6)
    model, images = given(output)
    result = konkyo.explain(model, images, target=ContrastTarget(Pixel(2, 3, "road"), "tree"), layer="features")
    torch.testing.assert_close(result.scores, output[:, 1, 3, 2] - output[:, 2, 3, 2])
    assert result.labels == ("road, pixel 2,3, not tree, pixel 2,3",)
    against = konkyo.explain(model, images, target=Against(Pixel(2, 3, "road")), layer="features")
    torch.testing.assert_close(against.scores, -output[:, 1, 3, 2])
    both = konkyo.explain(model, images, target=SumTarget(Pixel(2, 3, 1), Pixel(0, 0, 2)), layer="features")
    torch.testing.assert_close(both.scores, output[:, 1, 3, 2] + output[:, 2, 0, 0])


def test_images_of_a_batch_have_their_own_regions():
    output = torch.cat([one_hot(LABELS), one_hot([[2] * 6] * 4)])
    model, images = given(output)
    result = konkyo.explain(model, images, layer="features")
    assert result.labels == ("road", "tree, all of the picture")
    listed = konkyo.explain(model, images, target=[Pixel(1, 1), Pixel(0, 0)], layer="features")
    assert listed.labels == ("road, pixel 1,1", "tree, pixel 0,0")


def test_the_region_stays_the_same_when_the_image_changes():
    """Occluding everything changes what is predicted, not the region whose score is asked for."""
    output = one_hot(LABELS) + 0.1
    model, _ = given(output)
    target = model.targets("road", output)[0][0]
    changed = output.flip(3)
    inside = torch.tensor(LABELS) == 1
    torch.testing.assert_close(target(changed), changed[:, 1][:, inside].mean(1))


def test_one_logit_decides_between_two_classes():
    output = torch.randn(1, 1, 4, 6)
    model, images = given(output)
    result = konkyo.explain(model, images, target=Region(1, "all", score="probability"), layer="features")
    rise = konkyo.explain(model, images, target=Region(1, "all"), method="rise", masks=4)
    torch.testing.assert_close(rise.scores, output.sigmoid().mean((1, 2, 3)))
    assert result.targets[0].score == "probability"
    first = konkyo.explain(model, images, target=Region(0, "all"), layer="features")
    torch.testing.assert_close(first.scores, -output.mean((1, 2, 3)))


def test_classes_that_do_not_exclude_each_other_are_where_their_logit_is_positive():
    output = torch.randn(1, 3, 4, 6)
    model, images = given(output, multilabel=True)
    target = konkyo.explain(model, images, target=Region(2), method="rise", masks=4).targets[0]
    torch.testing.assert_close(target.weights((4, 6)), (output[0, 2] > 0).float())
    assert target.score == "sigmoid"


def test_probabilities_are_explained_as_they_are_and_doubted_where_nobody_says_so():
    output = torch.randn(1, 4, 4, 6).softmax(1)
    model, images = given(output)
    with pytest.warns(konkyo.KonkyoWarning, match="SegmentationTask\\(probabilities=True\\)"):
        result = konkyo.explain(model, images, target=Region(1, "all"), layer="features")
    assert result.decisions[0].asked_probability == pytest.approx(float(output[0, 1].mean()), abs=1e-6)
    model, images = given(output, probabilities=True)
    result = konkyo.explain(model, images, target=Region(1, "all"), method="rise", masks=4)
    torch.testing.assert_close(result.scores, output[:, 1].mean((1, 2)))


def test_targets_come_back_from_files(tmp_path):
    model, images = given(torch.randn(1, 4, 4, 6))
    target = Each(Pixel(2, 3), Region(1, "all", score="margin"), Region(2, torch.rand(4, 6) > 0.5))
    result = konkyo.explain(model, images, target=target, layer="features")
    for suffix in ("npz", "safetensors"):
        again = konkyo.Explanation.load(result.save(tmp_path / f"e.{suffix}"))
        assert again.targets == result.targets
        assert again.labels == result.labels
    values = json.loads(json.dumps(konkyo.SegmentationTask.saved(result.targets[0])))
    values["region"]["size"] = [4000, 6000]
    with pytest.raises(KonkyoError, match="bytes"):
        konkyo.SegmentationTask.restored(values)


def test_names_must_be_as_many_as_channels():
    model = konkyo.Model(Given(3), None, NAMES, "given", task=konkyo.SegmentationTask())
    with pytest.raises(KonkyoError, match="4 class names for given, whose output has 3 channels"):
        konkyo.explain(model, torch.randn(1, 3, 4, 6))


def test_a_classifier_is_no_segmenter():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = konkyo.Model(network, None, task=konkyo.SegmentationTask())
    with pytest.raises(KonkyoError, match=r"score per class and pixel.*got \(1, 4\)"):
        konkyo.explain(model, torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (TargetRequest(), TopK(1)),
        (TargetRequest(top=3), TopK(3)),
        (TargetRequest(classes=("road",)), Each(Region("road"))),
        (TargetRequest(classes=("road", 2), region="all"), Each(Region("road", "all"), Region(2, "all"))),
        (TargetRequest(mask="m.png"), Each(Region(None, "m.png"))),
        (TargetRequest(classes=(1,), boxes=((0.0, 0.0, 4.0, 4.0),)), Each(Region(1, box=(0, 0, 4, 4)))),
        (TargetRequest(pixels=((3.0, 4.0),)), Each(Pixel(3, 4))),
        (TargetRequest(classes=("road",), against="tree"), Each(ContrastTarget(Region("road"), "tree"))),
    ],
)
def test_options_of_the_command_line(options, expected):
    assert konkyo.SegmentationTask().request(options, "net") == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TargetRequest(threshold=0.3), "--score: for detectors only; net is a segmenter"),
        (TargetRequest(region="all", mask="m.png"), "both say where"),
        (TargetRequest(pixels=((1.0, 2.0),), region="all"), "--pixel is a place by itself; --region"),
        (TargetRequest(top=2, classes=(1,)), "--top takes the most frequent"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(KonkyoError, match=message):
        konkyo.SegmentationTask().request(options, "net")


@pytest.mark.parametrize("field", [{"region": "all"}, {"mask": "m.png"}, {"pixels": ((1.0, 2.0),)}])
def test_other_tasks_refuse_the_options_of_segmenters(field):
    with pytest.raises(KonkyoError, match="for segmenters only; net is a classifier"):
        konkyo.load("konkyo/scenes-classifier", weights=None).task.request(TargetRequest(**field), "net")


def test_a_target_that_is_none_is_refused():
    model, images = given(torch.randn(1, 4, 4, 6))
    for wrong in (1.5, "nothing", 7):
        with pytest.raises(KonkyoError, match=r"Region\(\.\.\.\), Pixel|unknown class|classes of given are 0 to 3"):
            konkyo.explain(model, images, target=wrong, layer="features")


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam"])
def test_a_map_that_is_the_output_again_is_said_to_be(method):
    """At the head of a linear network Grad-CAM is the class's own map; a layer before it, with a ReLU, is another."""
    model, images = model_of(), torch.randn(1, 3, 32, 48)
    target = RegionTarget(2, Mask(torch.rand(8, 12) < 0.5))
    with pytest.warns(konkyo.KonkyoWarning, match="the map is the prediction itself"):
        result = konkyo.explain(model, images, target=target, layer="head", method=method)
    assert result.diagnosis[0].kind == "is output"
    early = konkyo.explain(model, images, target=target, layer="backbone.1", method=method)
    assert early.diagnosis[0].ok


def one_channel(bias: float, *, squashed: bool = False) -> konkyo.Model:
    """A segmenter of one logit per pixel, the red one's value plus a bias; or of its sigmoid."""

    class Net(nn.Module):
        def forward(self, images):
            logit = images[:, :1] + bias
            return logit.sigmoid() if squashed else logit

    return konkyo.Model(Net(), classes=("nothing", "thing"), task=konkyo.SegmentationTask())


def test_one_output_in_0_to_1_is_refused_until_it_is_said_what_it_is():
    x = torch.rand(1, 3, 8, 8)
    model = one_channel(-1.0, squashed=True)
    output = model(x)
    with pytest.raises(konkyo.KonkyoError, match="probabilities=True"):
        model.targets("thing", output)
    told = replace(one_channel(0.2), task=konkyo.SegmentationTask(probabilities=False))
    assert told.targets("thing", told(x / 2))[0][0].index == 1


def test_one_logit_is_perturbed_by_its_sigmoid():
    model, x = one_channel(1.0), torch.randn(1, 3, 8, 8)
    (target,) = model.targets(konkyo.Region("thing", within="all"), model(x))[0]
    score = model.task.perturbation_score(target, torch.full((4,), torch.nan))(model(x))
    torch.testing.assert_close(score, (x[:, 0] + 1).sigmoid().mean((1, 2)))


def test_a_region_is_not_looked_for_on_a_mirrored_image():
    model, x = model_of(), torch.randn(1, 3, 32, 48)
    target = konkyo.Region(1, box=(0, 0, 10, 32))
    for asked in (target, konkyo.Against(target), konkyo.SumTarget(target, target)):
        with pytest.raises(konkyo.NotApplicable, match="flip=False"):
            konkyo.explain(model, x, method="augmented(grad_cam)", target=asked)
    whole = konkyo.Region(1, within="all")
    assert len(konkyo.explain(model, x, method="augmented(grad_cam)", target=whole)) == 1
    with pytest.raises(konkyo.KonkyoError, match="mirror image"):
        konkyo.stability(model, x, "hires_cam", over="mirror", target=target)


def test_shares_of_many_classes():
    output = torch.randn(2, 9, 6, 7)
    expected = torch.stack([(output.argmax(1) == k).flatten(1).float().mean(1) for k in range(9)], 1)
    torch.testing.assert_close(konkyo.SegmentationTask().shares(output), expected)


def test_pixels_and_masks_are_of_the_whole_picture_also_where_the_network_sees_a_crop():
    class Red(nn.Module):
        def forward(self, images):
            return torch.cat([images[:, :1], 1 - images[:, :1]], 1)

    preprocess = konkyo.Preprocess(64, 64, (0.0,) * 3, (1.0,) * 3)
    task = konkyo.SegmentationTask(probabilities=True)
    model = konkyo.Model(Red(), preprocess, ("red", "dark"), task=task)
    picture = Image.new("RGB", (300, 150))
    picture.paste((255, 0, 0), (200, 0, 225, 150))  # of the 75..225 that the network sees the right sixth
    for target in (Pixel(210, 30), Region("red", box=(200, 0, 225, 150)), "red"):
        result = konkyo.explain(model, picture, target=target, method="gradient")
        columns = result.signed[0].abs().sum(0).nonzero()[:, 0] / 64
        assert columns.min() > 0.8, target
    mask = np.zeros((150, 300), dtype=bool)
    mask[:, 200:225] = True
    by_mask = konkyo.explain(model, picture, target=Region("red", within=mask), method="gradient")
    by_box = konkyo.explain(model, picture, target=Region("red", box=(200, 0, 225, 150)), method="gradient")
    torch.testing.assert_close(by_mask.signed, by_box.signed, rtol=1e-3, atol=1e-6)
    with pytest.raises(KonkyoError, match="x from 75 to 225"):
        konkyo.explain(model, picture, target=Pixel(5, 5), method="gradient")
    outside = Region("red", within=~mask & (np.arange(300) < 50))
    with pytest.raises(KonkyoError, match="nothing in what the network sees"):
        konkyo.explain(model, picture, target=outside, method="gradient")
    square = replace(model, preprocess=konkyo.Preprocess((64, 64), None, (0.0,) * 3, (1.0,) * 3, fit="square"))
    assert len(konkyo.explain(square, picture, target=Pixel(210, 30), method="gradient")) == 1


@pytest.mark.parametrize("values", [np.nan, -1.0])
def test_masks_of_other_numbers_are_refused(values):
    mask = np.where(np.arange(64).reshape(8, 8) > 30, 1.0, values)
    with pytest.raises(KonkyoError, match="a mask has weights"):
        Region("cat", within=mask)

"""Instances of segmenters with queries, against the library's own post-processing and gradients by hand."""

import json

import pytest
import torch
from torch.nn import functional

import konkyo
from helpers.segmenters import mask2former, maskformer
from konkyo.targets.queries import Queries, QueryTarget, pack_queries
from konkyo.targets.specs import parse_target
from konkyo.tasks.queries import InstanceSegmentationTask

transformers = pytest.importorskip("transformers")
NAMES = ("wall", "floor", "car", "lamp", "sky")
both = pytest.mark.parametrize("make", [maskformer, mask2former], ids=lambda make: make.__name__)


def _network(make):
    """A network in eval mode whose queries differ and depend on the image."""
    network = make().eval()
    network.config.id2label = dict(enumerate(NAMES))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
    return network


def _post_processed(network, images):
    """The library's own instances of the first image, highest score first: (class, score) and their masks."""
    second = isinstance(network, transformers.Mask2FormerForUniversalSegmentation)
    processor = (transformers.Mask2FormerImageProcessor if second else transformers.MaskFormerImageProcessor)()
    with torch.no_grad():
        output = network(images)
    (result,) = processor.post_process_instance_segmentation(output, threshold=0.0, return_binary_maps=True)
    segments = result["segments_info"]
    order = sorted(range(len(segments)), key=lambda i: -segments[i]["score"])
    return [(segments[i]["label_id"], segments[i]["score"]) for i in order], [result["segmentation"][i] for i in order]


@both
def test_the_score_is_that_of_the_librarys_post_processing(make):
    network, x = _network(make), torch.randn(1, 3, 64, 96)
    segments, masks = _post_processed(network, x)
    assert len(segments) > 2
    label = segments[0][0]
    numbers = [i for i, (other, _) in enumerate(segments) if other == label][:2]
    assert len(numbers) == 2
    asked = [konkyo.Instance(label, number) for number in (1, 2)]
    result = konkyo.explain(network, x, target=konkyo.Each(*asked), method="hires_cam")
    for row, number in enumerate(numbers):
        assert float(result.scores[row]) == pytest.approx(segments[number][1], abs=2e-6)
        assert torch.equal(result.targets[row].part().weights, masks[number].float())
    best = konkyo.explain(network, x, target=konkyo.Instance(), method="hires_cam")
    assert best.targets[0].label == label
    assert best.targets[0].index == result.targets[0].index


@both
@pytest.mark.parametrize("quantity", ["score", "class", "mask"])
def test_maps_are_those_of_gradients_by_hand(make, quantity):
    network, x = _network(make), torch.randn(1, 3, 64, 96)
    kept = {}

    def keep(module, args, output):
        levels = tuple(level.detach().requires_grad_() for level in output.feature_maps)
        kept["levels"] = levels
        output.feature_maps = levels
        return output

    handle = network.model.pixel_level_module.encoder.register_forward_hook(keep)
    output = network(x)
    handle.remove()
    target = konkyo.explain(network, x, target=konkyo.Instance("car", quantity=quantity), method="hires_cam")
    query, inside = target.targets[0].index, target.targets[0].mask.weights > 0
    mask = output.masks_queries_logits[:, query : query + 1]
    if make is mask2former:
        mask = functional.interpolate(mask, (384, 384), mode="bilinear", align_corners=False)
    assert torch.equal(mask[0, 0] > 0, inside)
    probability, cells = output.class_queries_logits[0, query].softmax(0)[2], mask[0, 0][inside]
    score = {"score": probability * cells.sigmoid().mean(), "class": probability.log(), "mask": cells.mean()}[quantity]
    gradients = torch.autograd.grad(score, kept["levels"], allow_unused=True, materialize_grads=True)
    finest = kept["levels"][0].shape[2:]
    maps = [(gradient * level).sum(1).detach() for level, gradient in zip(kept["levels"], gradients, strict=True)]
    expected = sum(functional.interpolate(m[:, None], finest, mode="bilinear")[:, 0] for m in maps)
    assert float(target.scores[0]) == pytest.approx(score.item(), abs=1e-5)
    assert target.diagnosis[0].kind != "zero gradient"
    torch.testing.assert_close(target.signed, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def _drawn_queries():
    """Three queries of two classes on 4 x 4 cells, with masks left, right and everywhere."""
    masks = torch.full((1, 3, 4, 4), -4.0)
    masks[0, 0, :, :2], masks[0, 1, :, 2:], masks[0, 2] = 4.0, 4.0, 4.0
    return torch.tensor([[[3.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]]), masks


def test_packing_loses_nothing():
    classes, masks = torch.randn(2, 3, 6), torch.randn(2, 3, 7, 4)
    queries = Queries(pack_queries(classes, masks), 5)
    assert torch.equal(queries.class_logits, classes)
    assert torch.equal(queries.masks, masks)
    with pytest.raises(konkyo.KonkyoError, match=r"queries of 5 classes"):
        Queries(torch.zeros(2, 3, 2, 4), 5)


def test_the_query_is_found_again_by_its_mask_and_class():
    classes, masks = _drawn_queries()
    likeness = tuple(classes[0, 0].softmax(0).tolist())
    target = QueryTarget(0, konkyo.Mask(masks[0, 0] > 0), likeness, 0)
    assert target.match(pack_queries(classes, masks)).tolist() == [0]
    moved = [2, 1, 0]  # on another image, with other classes by a little, the left query comes last
    other = pack_queries(classes[:, moved] * 0.9, masks[:, moved])
    assert target.match(other).tolist() == [2]
    assert float(target(other)) == pytest.approx(
        float((classes[0, 0] * 0.9).softmax(0)[0] * torch.tensor(4.0).sigmoid())
    )
    # The region is fixed: a mask that shrinks to a half of it gives half of the score, and more.
    masks[0, 0, :2, :2] = -4.0
    inside = (torch.tensor([4.0, -4.0]).sigmoid()).mean() * classes[0, 0].softmax(0)[0]
    assert float(target(pack_queries(classes, masks))) == pytest.approx(float(inside))


def test_sums_and_contrasts_of_instances():
    network, x = _network(mask2former), torch.randn(1, 3, 64, 64)
    one, two = konkyo.Instance("sky", 1), konkyo.Instance("sky", 2)
    asked = konkyo.Each(one, two, konkyo.SumTarget(one, two), konkyo.ContrastTarget(one, two))
    result = konkyo.explain(network, x, target=asked, method="hires_cam")
    first, second, total, difference = result.scores.tolist()
    assert total == pytest.approx(first + second, abs=1e-5)
    assert difference == pytest.approx(first - second, abs=1e-5)
    torch.testing.assert_close(result.signed[2], result.signed[0] + result.signed[1], atol=1e-6, rtol=1e-3)
    assert any("below 0.5" in text for text in result.assumptions)
    assert result.labels[0].startswith("sky, query ")


def test_the_outline_is_drawn_and_stored(tmp_path):
    network, x = _network(maskformer), torch.randn(1, 3, 64, 96)
    result = konkyo.explain(network, x, target=konkyo.Instance("lamp", quantity="mask"), method="layer_cam")
    part = result.part(0)
    assert 0 < float(part.mean()) < 1
    result.save(tmp_path / "maps.npz")
    loaded = konkyo.Explanation.load(tmp_path / "maps.npz")
    assert loaded.targets == result.targets
    values = json.loads(json.dumps(InstanceSegmentationTask.saved(result.targets[0])))
    assert InstanceSegmentationTask.restored(values) == result.targets[0]
    assert InstanceSegmentationTask.restored({"label": 3}) is None


def test_without_an_instance_the_semantic_map_is_explained():
    network, x = _network(maskformer), torch.randn(1, 3, 64, 64)
    result = konkyo.explain(network, x, method="hires_cam")
    assert not isinstance(result.targets[0], QueryTarget)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("instance:3", konkyo.Instance(query=3)),
        ("instance:car", konkyo.Instance("car")),
        ("instance:car:2", konkyo.Instance("car", 2)),
        ("instance:2:1,of=mask", konkyo.Instance(2, 1, quantity="mask")),
    ],
)
def test_instances_in_words(text, request_):
    assert parse_target(text) == request_


def test_what_cannot_be_asked_for_is_refused():
    network, x = _network(maskformer), torch.randn(1, 3, 64, 64)
    for target, words in {
        konkyo.Instance("cat"): "unknown class",
        konkyo.Instance(7): "class 7",
        konkyo.Instance("car", 9): "queries of",
        konkyo.Instance(query=99): "query 99",
        konkyo.Each("car", konkyo.Instance("car")): "only instances",
    }.items():
        with pytest.raises(konkyo.KonkyoError, match=words):
            konkyo.explain(network, x, target=target)
    for values in ({"number": 0}, {"query": -1}, {"query": 1, "number": 2}, {"quantity": "area"}, {"label": 1.5}):
        with pytest.raises(konkyo.KonkyoError):
            konkyo.Instance(**values)

"""Segmenters of torchvision and transformers: maps against gradients by hand, decisions against the library's own."""

import pytest
import torch
import torchvision
from torch.nn import functional
from torch.utils._pytree import tree_map

import konkyo
from helpers.segmenters import mask2former, maskformer
from konkyo.targets.regions import RegionTarget

transformers = pytest.importorskip("transformers")


def segformer():
    config = transformers.SegformerConfig(
        num_labels=5, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


def upernet():
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, num_labels=5, hidden_size=16, use_auxiliary_head=True, auxiliary_channels=8,
        auxiliary_in_channels=16, pool_scales=[1, 2],
    )  # fmt: skip
    return transformers.UperNetForSemanticSegmentation(config)


def deeplab():
    make = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large
    return make(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)


def fcn():
    return torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=5)


def lraspp():
    return torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)


def _drawn(make):
    """A network in eval mode whose weights let the image through: those of new segmenters are nearly constant."""
    network = make().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return network


CASES = {
    deeplab: ("backbone", ["out"], lambda output: output["out"]),
    lraspp: ("backbone", ["low", "high"], lambda output: output["out"]),
    segformer: ("segformer", None, lambda output: output.logits),
    upernet: ("backbone", None, lambda output: output.logits),
}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_maps_are_those_of_gradients_by_hand(make):
    """The maps of all levels that the head reads, each with the gradient of the mean logit over the region, added."""
    network, x = _drawn(make), torch.randn(1, 3, 64, 96)
    name, levels, logits_of = CASES[make]
    kept = {}

    def keep(module, args, output):
        maps = _levels(output, levels)
        kept["levels"] = [level.detach().requires_grad_() for level in maps]
        leaves = {id(level): leaf for level, leaf in zip(maps, kept["levels"], strict=True)}
        return tree_map(lambda tensor: leaves.get(id(tensor), tensor), output)

    handle = network.get_submodule(name).register_forward_hook(keep)
    logits = logits_of(network(x))
    handle.remove()
    region = torch.rand(logits.shape[2:]) > 0.5
    gradients = torch.autograd.grad(logits[0, 3][region].mean(), kept["levels"])
    finest = kept["levels"][0].shape[2:]
    maps = [(gradient * level).sum(1).detach() for level, gradient in zip(kept["levels"], gradients, strict=True)]
    expected = sum(functional.interpolate(m[:, None], finest, mode="bilinear")[:, 0] for m in maps)
    result = konkyo.explain(network, x, target=RegionTarget(3, konkyo.Mask(region)), method="hires_cam")
    assert result.layer.startswith(name)
    assert result.diagnosis[0].ok, result.diagnosis
    torch.testing.assert_close(result.signed, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def _levels(output, names):
    if names is not None:
        return [output[name] for name in names]
    return list(output.feature_maps if "feature_maps" in output else output.hidden_states)


@pytest.mark.parametrize("make", [maskformer, mask2former], ids=lambda make: make.__name__)
def test_queries_decide_as_the_librarys_post_processing(make):
    network, x = make().eval(), torch.randn(2, 3, 64, 96)
    model = konkyo.Model(network)
    processor = {
        maskformer: transformers.MaskFormerImageProcessor, mask2former: transformers.Mask2FormerImageProcessor
    }[make]()  # fmt: skip
    with torch.no_grad():
        output = model(x)
        expected = processor.post_process_semantic_segmentation(network(x), target_sizes=[tuple(output.shape[2:])] * 2)
    for row, labels in zip(output, expected, strict=True):
        assert (row.argmax(0) == labels).float().mean() > 0.999
    result = konkyo.explain(network, x, method="hires_cam")
    assert result.layer.endswith("pixel_level_module.encoder")
    assert len(result) == 2


@pytest.mark.parametrize("make", [maskformer, mask2former], ids=lambda make: make.__name__)
def test_the_semantic_map_is_the_sum_over_queries(make):
    network, x = make().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        output, raw = konkyo.Model(network)(x), network(x)
    masks = raw.masks_queries_logits
    if make is mask2former:
        masks = functional.interpolate(masks, (384, 384), mode="bilinear")
    classes = raw.class_queries_logits.softmax(-1)
    expected = torch.zeros_like(output)
    for q in range(6):
        for c in range(5):
            expected[0, c] += classes[0, q, c] * masks[0, q].sigmoid()
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_torchvisions_segmenters_by_name(name, tmp_path):
    model = konkyo.load(f"torchvision/{name}", weights=None)
    assert model.classes[:2] == ("__background__", "aeroplane")
    assert len(model.classes) == 21
    assert model.preprocess.resize == 520
    assert model.preprocess.crop is None
    assert model.task.noun == "segmenter"
    assert model.task.background_of(model._classes) == 0
    # Weights of five classes from a file, with a head that only helps in training.
    make = getattr(torchvision.models.segmentation, name)
    extra = {"aux_loss": True} if name.startswith("deeplab") else {}
    other = make(weights=None, weights_backbone=None, num_classes=5, **extra).eval()
    torch.save(other.state_dict(), tmp_path / "w.pth")
    loaded = konkyo.load(f"torchvision/{name}", weights=tmp_path / "w.pth")
    x = torch.randn(1, 3, 64, 64)
    assert loaded.classes == ()
    torch.testing.assert_close(loaded(x), other(x)["out"])


def test_a_segmenter_of_transformers_from_its_folder(tmp_path):
    network = segformer()
    network.config.id2label = dict(enumerate(("wall", "floor", "cat", "lamp", "sky")))
    network.save_pretrained(tmp_path)
    transformers.SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    model = konkyo.load(f"hf/{tmp_path}")
    assert model.classes == ("wall", "floor", "cat", "lamp", "sky")
    assert model.task.noun == "segmenter"
    assert model.preprocess is not None
    assert model.preprocess.resize == (64, 64)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x), network.eval()(x).logits)

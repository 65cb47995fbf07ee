"""transformers' detectors: their candidates, kept, differentiated and loaded, against the library's own processors."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.ops import box_convert, box_iou

import konkyo
from helpers.detectors_of_transformers import (
    CASES,
    CLASSES,
    DETR,
    QUERIES,
    SIZE,
    VIT,
    known,
    leaves_at,
    network,
    pictures,
    resnet,
)
from helpers.paths import DATA
from konkyo.errors import KonkyoError
from konkyo.models.detectors import Kept
from konkyo.models.detectors.transformers import detector
from konkyo.models.preprocess import Preprocess
from konkyo.models.transformers import kind_of
from konkyo.models.transformers import load as from_folder_or_hub
from konkyo.targets.candidates import Candidates

T = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)


EVERY = pytest.mark.parametrize("name", CASES)
PLAIN = [name for name in CASES if "," not in name]
ONCE = pytest.mark.parametrize("name", PLAIN)


# The processors that the published models name, where transformers' own lists have none.
PUBLISHED = {
    **{"dab-detr": "ConditionalDetrImageProcessor", "rt_detr_v2": "RTDetrImageProcessor"},
    "d_fine": "RTDetrImageProcessor",
}


def processor_of(module: nn.Module) -> Any:
    """The image processor that transformers itself takes for the model."""
    names = importlib.import_module("transformers.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES
    kind = module.config.model_type
    return getattr(T, PUBLISHED[kind] if kind in PUBLISHED else names[kind]["torchvision"])()


def same_detections(output: Tensor, kept: Kept, expected: dict[str, Tensor], image: int) -> None:
    candidates = Candidates(output, CLASSES)
    index, label = kept.index, kept.label
    scores = candidates.probabilities[image, index, label]
    boxes = torch.stack([candidates.boxes(int(c))[image, int(i)] for i, c in zip(index, label, strict=True)])
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    order = expected["scores"].argsort(descending=True, stable=True)
    torch.testing.assert_close(scores, expected["scores"][order], rtol=0, atol=1e-5)
    assert label.tolist() == expected["labels"][order].tolist()
    torch.testing.assert_close(boxes, expected["boxes"][order], rtol=0, atol=1e-4)


@EVERY
def test_the_kept_are_those_of_the_library(name: str) -> None:
    module, images = network(name), pictures()
    found = known(module)
    assert found.classes == CLASSES
    with torch.no_grad():
        output, own = found.propose(module, images), module(images)
    assert output.shape == (2, QUERIES, 4 + CLASSES)
    processor, sizes = processor_of(module), [SIZE] * 2
    everything = processor.post_process_object_detection(own, threshold=0.0, target_sizes=sizes)
    third_to_fourth = [e["scores"].sort(descending=True).values[2:4].mean() for e in everything]
    for threshold in (0.0, float(min(third_to_fourth))):
        expected = processor.post_process_object_detection(own, threshold=threshold, target_sizes=sizes)
        kept = found.keep(output, threshold)
        assert len(kept) == 2
        for image, (ours, theirs) in enumerate(zip(kept, expected, strict=True)):
            assert len(theirs["scores"]) >= 3
            same_detections(output, ours, theirs, image)
    assert sum(len(k.label) for k in kept) < sum(len(e["scores"]) for e in everything)
    assert all(len(k.index) == len(k.label) == 0 for k in found.keep(output, 1.0))


@pytest.mark.parametrize("name", ["conditional", "rt"])
def test_no_more_are_kept_than_the_library_keeps(name: str) -> None:
    classes = 12
    module = network(name, num_labels=classes)
    found = known(module)
    with torch.no_grad():
        output, own = found.propose(module, pictures()), module(pictures())
    expected = processor_of(module).post_process_object_detection(own, threshold=0.0)
    counts = [len(k.index) for k in found.keep(output, 0.0)]
    assert counts == [len(e["scores"]) for e in expected] == [100 if name == "conditional" else QUERIES] * 2


@EVERY
def test_a_gradient_reaches_the_layer(name: str) -> None:
    module, images = network(name).requires_grad_(False), pictures(1)
    found = known(module)
    assert found.layer == CASES[name][3]
    with torch.inference_mode():
        usual = found.propose(module, images)
    with leaves_at(module, found.layer) as leaves:
        output = found.propose(module, images)
    torch.testing.assert_close(output.detach(), usual)
    grids = CASES[name][4]
    if name == "yolos":
        (tokens,) = leaves
        assert tokens.shape[1] == 1 + grids[0][0] * grids[0][1] + QUERIES
    else:
        assert [tuple(leaf.shape[2:]) for leaf in leaves] == grids
    # Of all candidates together: with such weights a single query may look away from a level.
    for wanted in (Candidates(output, CLASSES).probabilities[..., 0].sum(), output[..., 2].sum()):
        for leaf, gradient in zip(leaves, torch.autograd.grad(wanted, leaves, retain_graph=True), strict=True):
            if name == "yolos":
                gradient = gradient[:, 1:-QUERIES]
            assert gradient.isfinite().all()
            assert gradient.norm() > 1e-7 * leaf.norm()
    kept = found.keep(output, 0.0)[0]
    best = output[0, kept.index[0], 4 + kept.label[0]]
    assert sum(g.norm() for g in torch.autograd.grad(best, leaves)) > 0
    assert all(p.grad is None for p in module.parameters())


def copied(output: Any) -> Any:
    """The lists too: DEIMv2's encoder writes into the one that it gets."""
    return tree_map(lambda value: value, output)


@ONCE
def test_the_layer_is_all_that_the_detector_sees(name: str) -> None:
    """With the layer's output kept, another image gives the same candidates (but for YOLOS, whose tokens go around)."""
    if name == "yolos":
        pytest.skip("the residual stream goes around the layer")
    module, first = network(name), pictures(1)
    found, outputs = known(module), []
    layer = module.get_submodule(found.layer)
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda _m, _a, output: outputs.append(copied(output)))
        expected = found.propose(module, first)
        handle.remove()
        handle = layer.register_forward_hook(lambda _m, _a, _output: copied(outputs[0]))
        replaced = found.propose(module, pictures(1, seed=4))
        handle.remove()
        other = found.propose(module, pictures(1, seed=4))
    torch.testing.assert_close(replaced, expected)
    assert not torch.allclose(other, expected, atol=1e-3)


@EVERY
def test_a_batch_is_its_images(name: str) -> None:
    module, images = network(name), pictures(3)
    found = known(module)
    with torch.no_grad():
        together = found.propose(module, images)
        alone = torch.cat([found.propose(module, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)
    assert (together[0] - together[1]).abs().max() > 1e-3


@ONCE
def test_half_precision(name: str) -> None:
    if name == "dab":
        pytest.skip("transformers' own forward of DAB-DETR takes fp32 only")
    module = network(name).to(torch.bfloat16)
    found = known(module)
    with leaves_at(module, found.layer) as leaves:
        output = found.propose(module, pictures().to(torch.bfloat16))
    assert output.dtype == torch.float32
    assert output.isfinite().all()
    assert output.shape == (2, QUERIES, 4 + CLASSES)
    gradients = torch.autograd.grad(Candidates(output, CLASSES).probabilities[..., 0].sum(), leaves)
    assert all(g.isfinite().all() and g.any() for g in gradients)


def test_which_modules_are_detectors() -> None:
    class Mine(T.DetrForObjectDetection):  # type: ignore[misc, name-defined]
        """A user's own."""

    module = network("detr")
    mine = Mine(module.config).eval()
    mine.load_state_dict(module.state_dict())
    torch.testing.assert_close(known(mine).propose(mine, pictures()), known(module).propose(module, pictures()))
    stranger = type("DetrForObjectDetection", (nn.Linear,), {})(3, 3)
    vit = T.ViTForImageClassification(T.ViTConfig(**VIT, image_size=64, intermediate_size=32))
    heads = {"encoder_attention_heads": 8}
    segmenter = T.DetrForSegmentation(T.DetrConfig(backbone_config=resnet(1, 2, 3, 4), **{**DETR, **heads}))
    for other in (stranger, vit, module.model, segmenter, nn.Identity()):
        assert detector(other) is None


# --- loading ---------------------------------------------------------------------------------------------------------

NAMES = ("cat", "dog", "fox", "owl", "bee")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def saved(folder: Path, name: str, processor: Any = None, seed: int = 0, **more: Any) -> nn.Module:
    module = network(name, seed, **more)
    module.config.id2label, module.config.label2id = dict(enumerate(NAMES)), {n: i for i, n in enumerate(NAMES)}
    module.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return module


def photo(height: int, width: int) -> Image.Image:
    random = np.random.default_rng(height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


@ONCE
def test_a_folder_that_transformers_saved(name: str, tmp_path: Path) -> None:
    module = network(name)
    processor = processor_of(module)
    written = saved(tmp_path, name, type(processor)(size={"height": 48, "width": 80}))
    loaded = from_folder_or_hub(str(tmp_path), "default")
    assert loaded.classes == NAMES
    assert not loaded.module.training
    assert (loaded.detector.classes, loaded.detector.layer) == (CLASSES, CASES[name][3])
    with torch.no_grad():
        own, expected = (loaded.detector.propose(m, pictures()) for m in (loaded.module, written))
    torch.testing.assert_close(own, expected)
    if name == "rf":  # its processor makes pictures smaller without a filter, which Pillow does not
        assert loaded.preprocess is None
    else:
        assert loaded.preprocess is not None
        picture = photo(50, 31)
        theirs = T.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(picture, return_tensors="pt")
        torch.testing.assert_close(loaded.preprocess(picture), theirs["pixel_values"][0], rtol=0, atol=1e-5)
    fresh = from_folder_or_hub(str(tmp_path), None)
    assert fresh.classes == NAMES
    assert fresh.preprocess == loaded.preprocess
    assert not torch.allclose(fresh.detector.propose(fresh.module, pictures()), expected, atol=1e-3)


@pytest.mark.parametrize("size", [(800, 1333), (80, 133), (64, 100)])
@pytest.mark.parametrize("kind", ["Detr", "Yolos", "DeformableDetr", "ConditionalDetr"])
def test_sides_with_a_limit(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    shortest, longest = size
    name = "yolos" if kind == "Yolos" else "detr"
    edges = {"shortest_edge": shortest, "longest_edge": longest}
    saved(tmp_path, name, getattr(T, f"{kind}ImageProcessor")(size=edges))
    found = from_folder_or_hub(str(tmp_path), None).preprocess
    assert found is not None
    pil = T.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(pil).__name__.startswith(kind)
    # Long, longer than long enough, at the limit, on both sides, and there already.
    shapes = [(31, 40), (40, 31), (31, 90), (90, 31), (60, 101), (101, 60), (64, 100), (100, 64), (80, 97), (33, 33)]
    for height, width in shapes if shortest < 800 else shapes[:4]:
        picture = photo(height, width)
        expected = pil(picture, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(found(picture), expected, rtol=0, atol=1e-5)


def test_sides_of_every_shape() -> None:
    theirs = importlib.import_module("transformers.image_transforms").get_size_with_aspect_ratio
    random = np.random.default_rng(0)
    for shortest, longest in ((800, 1333), (512, 864)):
        ours: Any = Preprocess(resize=shortest, crop=None, **{"longest": longest})
        for height, width in random.integers(300, 1500, (300, 2)).tolist():
            picture = Image.new("L", (width, height))
            assert ours._resized(picture)[::-1] == theirs((height, width), shortest, longest)


def test_a_preprocessing_that_cannot_be_followed(tmp_path: Path) -> None:
    saved(tmp_path, "rt")
    assert from_folder_or_hub(str(tmp_path), None).preprocess is None
    for odd in (
        {"size": {"max_height": 64, "max_width": 64}},
        {"do_pad": True, "pad_size": {"height": 99, "width": 99}},
    ):
        T.RTDetrImageProcessor(**{"size": {"height": 48, "width": 80}, **odd}).save_pretrained(tmp_path)
        assert from_folder_or_hub(str(tmp_path), None).preprocess is None
    T.RTDetrImageProcessor(size={"height": 48, "width": 80}).save_pretrained(tmp_path)
    assert from_folder_or_hub(str(tmp_path), None).preprocess is not None


@pytest.mark.parametrize("name", ["detr", "deformable, two stages", "rt", "yolos"])
def test_a_file_of_weights(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "model", name)
    tuned = saved(tmp_path / "tuned", name, seed=1)
    other = network(name, seed=2, num_labels=CLASSES + 2)
    other.save_pretrained(tmp_path / "other")
    for folder, written, classes in (("tuned", tuned, NAMES), ("other", other, ())):
        loaded = from_folder_or_hub(str(tmp_path / "model"), tmp_path / folder / "model.safetensors")
        assert loaded.classes == classes
        assert loaded.detector.classes == written.config.num_labels
        with torch.no_grad():
            own, expected = (loaded.detector.propose(m, pictures()) for m in (loaded.module, written))
        torch.testing.assert_close(own, expected)


def test_weights_that_do_not_fit_or_lack_some(tmp_path: Path) -> None:
    saved(tmp_path, "detr")
    state = load_file(tmp_path / "model.safetensors")
    statistic = next(key for key in state if key.endswith("running_var"))
    bias = "class_labels_classifier.bias"
    for change, message in (
        ({"model.input_projection.bias": torch.zeros(5)}, r"input_projection\.bias is \(5,\) for \(32,\)"),
        ({bias: None}, rf"no trained object detector: it lacks 1 weights \({bias}"),
        ({statistic: None}, "no trained object detector: it lacks 1 weights"),
    ):
        torch.save({k: t for k, t in {**state, **change}.items() if t is not None}, tmp_path / "w.pth")
        with pytest.raises(KonkyoError, match=message):
            from_folder_or_hub(str(tmp_path), tmp_path / "w.pth")
    with pytest.raises(KonkyoError, match="no weights file"):
        from_folder_or_hub(str(tmp_path), tmp_path / "none.safetensors")
    del state[bias]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KonkyoError, match=rf"no trained object detector: it lacks 1 weights \({bias}"):
        from_folder_or_hub(str(tmp_path), "default")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(KonkyoError, match="cannot be loaded as an object detector"):
        from_folder_or_hub(str(tmp_path), "default")


def test_folders_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(KonkyoError, match="cannot be loaded: "):
        from_folder_or_hub(str(tmp_path / "nothing"), "default")
    vit = T.ViTForImageClassification(T.ViTConfig(**VIT, image_size=64, intermediate_size=32))
    vit.save_pretrained(tmp_path)
    assert from_folder_or_hub(str(tmp_path), None).detector is None
    segmenter = T.DetrConfig(backbone_config=resnet(4), **DETR, architectures=["DetrForSegmentation"])
    assert kind_of(T, segmenter).noun == "segmenter with queries"
    for name in PLAIN:
        config = network(name).config
        named = type(config)(architectures=[f"{CASES[name][0]}ForObjectDetection"])
        assert kind_of(T, named).noun == kind_of(T, type(config)()).noun == "object detector"  # by its type alone, too


def test_code_that_comes_with_a_detector_is_not_run(tmp_path: Path) -> None:
    folder, sentinel = tmp_path / "model", tmp_path / "sentinel"
    saved(folder, "detr")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForObjectDetection": "own.Net"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(sentinel)!r})\n")
    with pytest.raises(KonkyoError, match="cannot be loaded"):
        from_folder_or_hub(str(folder), "default")
    assert not sentinel.exists()


# --- a trained detector ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (DATA / "loaders" / "deimv2.py").is_file(), reason="needs a detector: KONKYO_TEST_DATA names its folder"
)
def test_a_trained_detector_finds_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DATA / "loaders")
    loader: Any = importlib.import_module("deimv2")
    module = loader.femto()
    found = known(module)
    assert (found.classes, found.layer) == (80, "model.conv_encoder")
    prepare = Preprocess(resize=(loader.SIZE,) * 2, crop=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    annotated = json.loads((DATA / "coco" / "instances.json").read_text())
    names = {kind["id"]: kind["name"] for kind in annotated["categories"]}
    right, kept_in_all = 0, 0
    for entry in annotated["images"][:5]:
        picture = Image.open(DATA / "coco" / "images" / entry["file_name"]).convert("RGB")
        with torch.no_grad():
            candidates = Candidates(found.propose(module, prepare(picture)[None]), found.classes)
        scale = torch.tensor([picture.width, picture.height] * 2) / loader.SIZE
        kept = found.keep(candidates.output, 0.5)[0]
        index, label = kept.index, kept.label
        assert len(index) > 0
        kept_in_all += len(index)
        for i, c in zip(index.tolist(), label.tolist(), strict=True):
            theirs = [
                a["bbox"]
                for a in annotated["annotations"]
                if a["image_id"] == entry["id"] and names[a["category_id"]] == loader.COCO80[c]
            ]
            if theirs:
                boxes = box_convert(torch.tensor(theirs, dtype=torch.float32), "xywh", "xyxy")
                right += bool(box_iou(candidates.boxes(c)[0, i][None] * scale, boxes).max() > 0.5)
    assert kept_in_all >= 10  # 12 were measured, all of them right; of the first 40 photographs' 129, 109 are
    assert right >= 0.8 * kept_in_all


@pytest.mark.skipif(
    not (DATA / "loaders" / "deimv2.py").is_file(), reason="needs a detector: KONKYO_TEST_DATA names its folder"
)
def test_a_trained_detector_s_odam_maps_lie_on_their_own_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DATA / "loaders")
    loader: Any = importlib.import_module("deimv2")
    prepare = Preprocess(resize=(loader.SIZE,) * 2, crop=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    model = konkyo.Model(loader.femto(), prepare, classes=loader.COCO80, detector=known(loader.femto()))
    shares: dict[str, list[float]] = {"grad_cam": [], "odam": []}
    for photo_ in sorted((DATA / "coco" / "images").iterdir())[:6]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", konkyo.KonkyoWarning)  # blank maps: they count as 0
            found = konkyo.compare(model, photo_, list(shares), target=konkyo.Detections(0.3))
        for name, result in found.items():
            maps = result.at((100, 100))
            with Image.open(photo_) as picture:
                boxes = result.boxes / torch.tensor([picture.width, picture.height] * 2) * 100
            for map_, (x0, y0, x1, y1) in zip(maps, boxes.round().int().clamp(0, 100).tolist(), strict=True):
                shares[name].append(float(map_[y0:y1, x0:x1].sum() / map_.sum().clamp_min(1e-12)))
    means = {name: sum(values) / len(values) for name, values in shares.items()}
    assert means["odam"] > 2 * means["grad_cam"], means

"""transformers' detectors of any text: their candidates and what is kept, against the library's own post-processing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.ops import box_convert

import konkyo
from helpers.detectors_of_transformers import leaves_at
from helpers.open_vocabulary import NAMES, QUERIES, SIZES, network, pictures, processor, tokenizer
from konkyo.errors import KonkyoError
from konkyo.models.detectors import Detector
from konkyo.models.detectors.open_vocabulary import image_guided_detector
from konkyo.models.prompts import Texts
from konkyo.models.transformers import _from_settings
from konkyo.targets.candidates import Candidates

T = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)


def detector_of(module: Any, processor: Any, texts: list[str]) -> Detector:
    """How a module is a detector of these texts."""
    found = konkyo.Model(module, processor=processor).prompted(texts=texts).detector
    assert found is not None
    return found


EVERY = pytest.mark.parametrize("name", NAMES)
TEXTS = ["cat", "red remote", "left dog"]


def words_for(name: str, texts: list[str], images: int) -> dict[str, Tensor]:
    """What the library's own processor makes of the texts, for every image."""
    picture = Image.new("RGB", (40, 32))
    inputs = processor(name)(text=[texts] * images, images=[picture] * images, return_tensors="pt")
    return {key: value for key, value in inputs.items() if key not in ("pixel_values", "pixel_mask")}


def own_results(name: str, output: Any, threshold: float, texts: list[str]) -> list[dict[str, Any]]:
    """What the library keeps, in pixels of the input, best first."""
    sizes, own = [SIZES[name]] * 2, processor(name)
    labels = {} if "Dino" in name else {"text_labels": [texts] * 2}
    # Of Grounding DINO the library names every token above a limit; here only the best one counts.
    results: list[dict[str, Any]] = own.post_process_grounded_object_detection(
        output, threshold=threshold, target_sizes=sizes, **labels
    )
    return results


@EVERY
def test_the_candidates_are_those_of_the_library(name: str) -> None:
    module, images = network(name), pictures(name)
    found = detector_of(module, tokenizer(name), TEXTS)
    assert found.classes == 3
    with torch.no_grad():
        output, own = found.propose(module, images), module(pixel_values=images, **words_for(name, TEXTS, 2))
    cells = QUERIES if "Owl" not in name else 36
    assert output.shape == (2, cells, 4 + 3)
    boxes, scores = output[..., :4], output[..., 4:]
    wide, tall = SIZES[name][::-1]
    if name == "OmDetTurbo":
        expected, logits = own.decoder_coord_logits, own.decoder_class_logits
    else:
        expected, logits = own.pred_boxes, own.logits
    if "Dino" in name:  # "[CLS] cat . red remote . left dog . [SEP]", a token a word
        assert logits.shape[2] == 24
        assert logits[..., 10:].eq(-torch.inf).all()
        spans = ([1], [3, 4], [6, 7])
        logits = torch.stack([logits[..., span].amax(-1) for span in spans], -1)
    torch.testing.assert_close(scores, logits.sigmoid())
    x, y, w, h = expected.unbind(-1)
    corners = torch.stack([(x - w / 2) * wide, (y - h / 2) * tall, (x + w / 2) * wide, (y + h / 2) * tall], -1)
    torch.testing.assert_close(boxes, corners)
    assert (scores.amax((0, 1)) - scores.amin((0, 1))).min() > 0.01  # they differ between places and images


@EVERY
def test_the_kept_are_those_of_the_library(name: str) -> None:
    module, images = network(name), pictures(name)
    found = detector_of(module, tokenizer(name), TEXTS)
    with torch.no_grad():
        output, own = found.propose(module, images), module(pixel_values=images, **words_for(name, TEXTS, 2))
    if "Dino" in name:  # the library may keep a box for a full stop, or for [CLS]
        marks = [0, 2, 5, 8, 9]
        own.logits[..., marks] = -torch.inf
    least = float(output[..., 4:].amax(-1).sort(1).values[:, -6:-4].mean())
    counts = []
    for threshold in (0.0, least):
        for image, (kept, expected) in enumerate(
            zip(found.keep(output, threshold), own_results(name, own, threshold, TEXTS), strict=True)
        ):
            scores = output[image, kept.index, 4 + kept.label]
            order = expected["scores"].argsort(descending=True, stable=True)
            torch.testing.assert_close(scores, expected["scores"][order], rtol=0, atol=1e-5)
            boxes = output[image, kept.index, :4]
            if name == "OmDetTurbo":  # which clips boxes after everything
                tall, wide = SIZES[name]
                boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([wide, tall, wide, tall]))
            torch.testing.assert_close(boxes, expected["boxes"][order], rtol=0, atol=1e-3)
            if "Dino" not in name:
                assert kept.label.tolist() == expected["labels"][order].tolist()
            counts.append(len(kept.index))
    assert 0 < sum(counts[2:]) < sum(counts[:2])


@EVERY
def test_a_gradient_reaches_every_cell_of_the_layer_and_is_finite(name: str) -> None:
    module, images = network(name).requires_grad_(False), pictures(name, 1)
    found = detector_of(module, tokenizer(name), TEXTS)
    with leaves_at(module, str(found.layer)) as leaves:
        output = found.propose(module, images)
    if "Owl" in name:
        assert found.layer == ("owlvit" if name == "OwlViT" else "owlv2") + ".vision_model.encoder.layers.1"
        assert [tuple(leaf.shape) for leaf in leaves] == [(1, 37, 32)]
    else:
        assert [tuple(leaf.shape[2:]) for leaf in leaves] == [(12, 16), (6, 8), (3, 4)]
    assert output.isfinite().all()
    for gradients in (
        torch.autograd.grad(output[..., 4:].sum(), leaves, retain_graph=True),
        torch.autograd.grad(output[0, :, 0].sum(), leaves, retain_graph=True),
    ):
        assert all(g.isfinite().all() and g.norm() > 0 for g in gradients)
    # One candidate looks at more than its own place.
    gradients = torch.autograd.grad(output[0, 5, 4], leaves)
    cells = [(g.abs().sum(-1) if "Owl" in name else g.abs().sum(1)).gt(0).sum() for g in gradients]
    assert max(int(count) for count in cells) > 2


def test_behind_the_last_block_of_owl_a_candidate_is_its_own_patch() -> None:
    """That is why the layer is the block before."""
    module, images = network("OwlViT"), pictures("OwlViT", 1)
    found = detector_of(module, tokenizer("OwlViT"), TEXTS)
    with leaves_at(module, "owlvit.vision_model.encoder.layers.2") as leaves:
        output = found.propose(module, images)
    (gradient,) = torch.autograd.grad(output[0, 5, 4], leaves)
    assert gradient.abs().sum(-1)[0].nonzero()[:, 0].tolist() == [0, 6]  # the class token, and patch 5


@pytest.mark.parametrize("name", ["OwlViT", "Owlv2"])
def test_another_text_changes_no_score_of_owl(name: str) -> None:
    module, images = network(name), pictures(name)
    with torch.no_grad():
        few = detector_of(module, tokenizer(name), TEXTS[:2]).propose(module, images)
        more = detector_of(module, tokenizer(name), TEXTS).propose(module, images)
    torch.testing.assert_close(more[..., :6], few)


@pytest.mark.parametrize("name", ["GroundingDino", "MMGroundingDino", "OmDetTurbo"])
def test_another_text_changes_the_scores_of_detectors_that_fuse_texts(name: str) -> None:
    module, images = network(name), pictures(name)
    with torch.no_grad():
        few = detector_of(module, tokenizer(name), TEXTS[:2]).propose(module, images)
        more = detector_of(module, tokenizer(name), TEXTS).propose(module, images)
    assert (more[..., 4:6] - few[..., 4:]).abs().max() > 1e-3


def test_a_phrase_of_many_tokens_has_the_score_of_its_best_token() -> None:
    module, images = network("GroundingDino"), pictures("GroundingDino", 1)
    found = detector_of(module, tokenizer("GroundingDino"), ["Red Cat", "ox"])
    prompt = tokenizer("GroundingDino")("red cat. ox.", return_tensors="pt")
    assert prompt["input_ids"].tolist() == [[101, 205, 201, 1012, 414, 323, 1012, 102]]
    with torch.no_grad():
        output, own = found.propose(module, images), module(pixel_values=images, **prompt).logits.sigmoid()
    torch.testing.assert_close(output[..., 4], own[..., 1:3].amax(-1))
    torch.testing.assert_close(output[..., 5], own[..., 4:6].amax(-1))


def test_the_texts_follow_the_weights() -> None:
    """OmDet-Turbo itself would go on with the embeddings that it has kept."""
    module, images = network("OmDetTurbo"), pictures("OmDetTurbo", 1)
    found = detector_of(module, tokenizer("OmDetTurbo"), TEXTS)
    with torch.no_grad():
        before = found.propose(module, images)
        module.language_backbone.text_projection.mul_(-1)
        after = found.propose(module, images)
    assert module.language_cache_class.current_load == 0
    assert (after[..., 4:] - before[..., 4:]).abs().max() > 1e-3


def test_what_is_no_text_is_refused() -> None:
    dino, words = network("GroundingDino"), tokenizer("GroundingDino")
    with pytest.raises(KonkyoError, match=r"full stops and question marks.*'a\. cat'"):
        detector_of(dino, words, ["dog", "a. cat"])
    with pytest.raises(KonkyoError, match=r"reads 24 tokens at most.*has 29"):
        detector_of(dino, words, [f"cat {i * 'a'}" for i in range(6)])
    with pytest.raises(KonkyoError, match="is it that of the network"):
        detector_of(dino, tokenizer("OwlViT"), ["cat", "dog"])
    with pytest.raises(KonkyoError, match=r"reads 16 tokens at most.*has 17"):
        detector_of(network("OwlViT"), tokenizer("OwlViT"), ["cat", "z" * 15])
    with pytest.raises(KonkyoError, match="as its tokenizer cuts them up"):
        konkyo.Model(dino).prompted(texts=["cat"])
    with pytest.raises(KonkyoError, match="reads every text once; 2 templates came"):
        konkyo.Model(dino, processor=words).prompted(texts=Texts.of(["cat"], ["a {}", "the {}"]))
    with pytest.raises(KonkyoError, match="reads text beside the image; give texts="):
        konkyo.explain(konkyo.Model(dino, processor=words), pictures("GroundingDino"))


def test_candidates_have_probabilities_of_all_texts() -> None:
    module = network("OwlViT")
    found = detector_of(module, tokenizer("OwlViT"), TEXTS)
    output = found.propose(module, pictures("OwlViT"))
    assert Candidates(output, 3).probabilities.shape == (2, 36, 3)


@EVERY
def test_the_cells_of_the_layer_are_places_of_the_image(name: str) -> None:
    """What a cell says depends most on the pixels at its place."""
    module, images = network(name, usual=True).requires_grad_(False), pictures(name, 1).requires_grad_()
    found = detector_of(module, tokenizer(name), TEXTS)
    levels: list[Tensor] = []
    handle = module.get_submodule(str(found.layer)).register_forward_hook(
        lambda _module, _inputs, output: levels.extend(t for t in tree_leaves(output) if t.is_floating_point())
    )
    with handle:
        found.propose(module, images)
    grids = [level[:, 1:].mT.unflatten(2, (6, 6)) if level.ndim == 3 else level for level in levels]
    near = []
    for grid in grids:
        directions = torch.randn(8, grid.shape[1], generator=torch.Generator().manual_seed(0))
        tall, wide = grid.shape[2:]
        for y, x in itertools.product(range(0, tall, 2), range(0, wide, 2)):
            said = directions @ grid[0, :, y, x]
            (gradients,) = torch.autograd.grad(said, images, torch.eye(8), retain_graph=True, is_grads_batched=True)
            energy = nn.functional.adaptive_avg_pool2d(gradients.square().sum((0, 2)), (tall, wide))[0]
            at = divmod(int(energy.argmax()), wide)
            near.append(max(abs(at[0] - y), abs(at[1] - x)) <= 1)
    assert sum(near) >= 0.8 * len(near)


@pytest.mark.parametrize("name", ["OwlViT", "Owlv2"])
def test_an_image_is_found_as_the_library_finds_it(name: str) -> None:
    module, images = network(name), pictures(name)
    query = pictures(name, 1, seed=8)[0]
    found = image_guided_detector(module, query)
    with torch.no_grad():
        output = found.propose(module, images)
        own = module.image_guided_detection(images, query.expand(2, -1, -1, -1), return_dict=True)
    torch.testing.assert_close(output[..., 4:], own.logits.sigmoid())
    torch.testing.assert_close(output[..., :4] / 96, box_convert(own.target_pred_boxes, "cxcywh", "xyxy"))
    sizes = torch.tensor([SIZES[name]] * 2)
    least = float(output[..., 4].median())
    expected = processor(name).post_process_image_guided_detection(own, least, 0.3, sizes)
    for kept, theirs, image in zip(found.keep(output, least), expected, output, strict=True):
        boxes = image[kept.index, :4]
        # The library orders them by patch, and leaves out those of a tenth of the highest score.
        for box in theirs["boxes"]:
            assert (boxes - box).abs().amax(1).amin() < 1e-3
        assert len(theirs["boxes"]) <= len(boxes)
    model = konkyo.Model(module, detector=found, classes=["this"])
    result = konkyo.explain(model, images, method="odam", target=konkyo.Detections(0.0, top=1))
    assert result.labels == ("this",) * 2
    with leaves_at(module, str(found.layer)) as leaves:  # once for the query, once for the image
        output = found.propose(module, images)
    target = result.targets[0]
    gradient = torch.autograd.grad(output[0, target.index, 4], leaves[-1])[0][0, 1:]  # type: ignore[attr-defined]
    activations, weights = leaves[-1].detach()[0, 1:], gradient
    torch.testing.assert_close(result.signed[0].flatten(), (activations * weights).sum(1), rtol=1e-3, atol=1e-6)


def test_only_owl_is_guided_by_an_image() -> None:
    with pytest.raises(KonkyoError, match="an OWL-ViT or OWLv2 of transformers was expected; got Linear"):
        image_guided_detector(nn.Linear(1, 1), torch.zeros(3, 96, 96))
    with pytest.raises(KonkyoError, match=r"a prepared image \(3, H, W\), as .* was expected; got \(1, 3, 96, 96\)"):
        image_guided_detector(network("OwlViT"), torch.zeros(1, 3, 96, 96))


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["OwlViT", "Owlv2", "OmDetTurbo"])
@pytest.mark.parametrize("size", [(70, 91), (131, 37), (200, 301)])
def test_pictures_are_prepared_as_the_processor_does(name: str, size: tuple[int, int]) -> None:
    own = processor(name).image_processor
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    expected = own(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(_from_settings(own)(picture), expected, rtol=0, atol=1e-4)


def test_a_picture_of_owl_2_lies_in_the_upper_left_of_a_square() -> None:
    preprocess = _from_settings(processor("Owlv2").image_processor)
    picture = Image.new("RGB", (60, 120), "white")
    picture.paste("red", (30, 90, 60, 120))
    frame, prepared = preprocess.frame(picture), preprocess(picture)
    red = (preprocess.undo(prepared[None])[0, 1] < 0.5).nonzero()[:, [1, 0]]
    inside = red[red[:, 0] < 47]  # beyond it is the border, black
    corners = torch.tensor([*inside.amin(0).tolist(), *(inside.amax(0) + 1).tolist()]).float()
    torch.testing.assert_close(frame.shown(corners), torch.tensor([30.0, 90.0, 60.0, 120.0]), rtol=0, atol=2.0)
    assert frame.region == (0.0, 0.0, 0.5, 1.0)
    assert preprocess.view(picture).size == (60, 120)
    assert preprocess.size(picture) == (96, 96)
    torch.testing.assert_close(preprocess.undo(prepared[None])[0, :, :, 50:], torch.zeros(3, 96, 46), rtol=0, atol=1e-5)


def test_boxes_and_maps_of_owl_2_are_those_of_the_picture() -> None:
    """The library scales boxes by the longer side of the picture; of a map the border is cut off."""
    module = network("Owlv2")
    preprocess = _from_settings(processor("Owlv2").image_processor)
    model = konkyo.Model(module, processor=processor("Owlv2")).prompted(texts=TEXTS)
    assert model.preprocess == preprocess
    pixels = np.random.default_rng(1).integers(0, 256, (5, 10, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((200, 100))
    result = konkyo.explain(model, picture, method="odam", target=konkyo.Detections(0.0, top=3))
    inputs = processor("Owlv2")(text=[TEXTS], images=picture, return_tensors="pt")
    own = processor("Owlv2").post_process_grounded_object_detection(module(**inputs), 0.0, [(100, 200)])[0]
    order = own["scores"].argsort(descending=True)[:3]
    boxes = result.boxes
    assert boxes is not None
    torch.testing.assert_close(boxes, own["boxes"][order].detach(), rtol=0, atol=2e-2)
    assert result.at((100, 200)).shape == (3, 100, 200)
    assert result.regions is not None
    assert result.regions.tolist() == [[0.0, 0.0, 1.0, 0.5]] * 3


def test_a_square_needs_its_size() -> None:
    with pytest.raises(KonkyoError, match=r"goes with resize=\(height, width\); got 96"):
        konkyo.Preprocess(resize=96, crop=None, fit="square")
    with pytest.raises(KonkyoError, match="go without a crop"):
        konkyo.Preprocess(resize=(96, 96), crop=96, fit="square")
    with pytest.raises(KonkyoError, match="go without a crop"):
        konkyo.Preprocess(resize=(96, 96), crop=96, interpolation="gaussian")

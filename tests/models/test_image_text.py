"""CLIP, SigLIP and SigLIP 2 against the library's own logits and against autograd by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers import contrastive
from helpers.closeness import close
from konkyo.targets.texts import TextOfSeveral, TextSimilarity
from konkyo.tasks.texts import ImageTextTask, ZeroShotTask

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
TEXTS = ["a cat", "a dog", "a red cat on the left"]
BUILD: dict[str, Callable[[], nn.Module]] = {
    "clip": contrastive.clip,
    "siglip": contrastive.siglip,
    "siglip2": contrastive.siglip2,
}
SOFTMAX = {"clip"}


def images(tall: int = 64, wide: int = 64, count: int = 2) -> Tensor:
    return torch.randn(count, 3, tall, wide)


def pair(family: str) -> tuple[nn.Module, Any, konkyo.Model]:
    """The network, its tokenizer, and the model of both."""
    network, tokenizer = BUILD[family](), contrastive.tokenizer()
    with torch.no_grad():  # as trained ones have
        network.logit_scale.fill_(2.5)
        if family not in SOFTMAX:
            network.logit_bias.fill_(-3.0)
    return network, tokenizer, konkyo.Model(network, processor=tokenizer)


def inputs(family: str, tokenizer: Any, texts: list[str], x: Tensor) -> dict[str, Tensor]:
    """What the library itself takes."""
    padding = {"padding": True} if family == "clip" else {"padding": "max_length", "max_length": 12}
    tokens = tokenizer(texts, return_tensors="pt", **padding)
    words = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    if family != "siglip2":
        return {**words, "pixel_values": x}
    tall, wide = x.shape[2] // 16, x.shape[3] // 16
    rows = [
        [image[:, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16].permute(1, 2, 0).flatten()]
        for image in x
        for i in range(tall)
        for j in range(wide)
    ]
    patches = torch.stack([row for (row,) in rows]).view(len(x), tall * wide, -1)
    empty = torch.full((len(x), 16 - tall * wide, patches.shape[2]), 7.0)  # whatever stands there is masked
    mask = torch.cat([torch.ones(len(x), tall * wide), torch.zeros(len(x), 16 - tall * wide)], 1).long()
    shapes = torch.tensor([[tall, wide]] * len(x))
    return {
        **words,
        "pixel_values": torch.cat([patches, empty], 1),
        "pixel_attention_mask": mask,
        "spatial_shapes": shapes,
    }


@pytest.mark.parametrize("family", BUILD)
def test_the_logits_are_the_librarys(family: str) -> None:
    network, tokenizer, model = pair(family)
    x = images(48, 64) if family == "siglip2" else images()
    with torch.no_grad():
        expected = network(**inputs(family, tokenizer, TEXTS, x)).logits_per_image
        close(model.prompted(texts=TEXTS)(x), expected)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("family", BUILD)
def test_probabilities_are_the_librarys(family: str) -> None:
    network, tokenizer, model = pair(family)
    x = images()
    with torch.no_grad():
        logits = network(**inputs(family, tokenizer, TEXTS, x)).logits_per_image
    expected = logits.softmax(1) if family in SOFTMAX else logits.sigmoid()
    bound = model.prompted(texts=TEXTS)
    for index, text in enumerate(TEXTS):
        result = konkyo.explain(bound, x, method="grad_cam", target=konkyo.Text(text, "probability"))
        close(result.scores, expected[:, index])


@pytest.mark.parametrize("family", BUILD)
def test_texts_are_embedded_once_and_without_a_graph(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _, model = pair(family)
    bound, calls = model.prompted(texts=TEXTS), []
    monkeypatch.setattr(network, "get_text_features", lambda **_: calls.append(1))
    logits = bound(images())
    konkyo.explain(bound, images(), method="layer_cam")
    assert not calls
    grown = torch.autograd.grad(logits.sum(), list(network.text_model.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in grown)
    assert not any("text" in site.name for site in bound.sites((3, 64, 64)))


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("clip", "vision_model.encoder.layers.1"),  # the input of the last block: after it only one token is read
        ("siglip", "vision_model.post_layernorm"),  # after the last block, whose tokens are all read
        ("siglip2", "vision_model.post_layernorm"),
    ],
)
@pytest.mark.parametrize("texts", [TEXTS, None])
def test_the_layer_is_where_all_tokens_are_read(family: str, layer: str, texts: list[str] | None) -> None:
    _, _, model = pair(family)
    bound = model if texts is None else model.prompted(texts=texts)
    assert [one.name for one in bound.automatic_layers((3, 64, 64))] == [layer]


def grad_cam_by_hand(family: str, network: nn.Module, tokenizer: Any, x: Tensor, label: int, grid: tuple[int, int]):
    """Grad-CAM of a text's logit, from hooks and autograd, on the tokens of the automatic layer."""
    clip = family == "clip"
    layer = network.vision_model.encoder.layers[1] if clip else network.vision_model.post_layernorm
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        tensor = output if isinstance(output, Tensor) else output[0]
        kept.append(tensor.detach().requires_grad_())
        return kept[-1] if isinstance(output, Tensor) else (kept[-1], *output[1:])

    hook = layer.register_forward_hook(keep)
    with torch.enable_grad():
        logits = network(**inputs(family, tokenizer, TEXTS, x)).logits_per_image
        (slope,) = torch.autograd.grad(logits[:, label].sum(), kept[0])
    hook.remove()
    cells = slice(int(clip), int(clip) + grid[0] * grid[1])
    values, slope = kept[0].detach()[:, cells], slope[:, cells]
    return (values * slope.mean(1, keepdim=True)).sum(2).view(len(x), *grid).relu()


@pytest.mark.parametrize("family", BUILD)
def test_grad_cam_of_a_text_is_that_by_hand(family: str) -> None:
    network, tokenizer, model = pair(family)
    tall, wide = (48, 64) if family == "siglip2" else (64, 64)
    x = images(tall, wide)
    result = konkyo.explain(model.prompted(texts=TEXTS), x, method="grad_cam", target="a dog")
    expected = grad_cam_by_hand(family, network, tokenizer, x, 1, (tall // 16, wide // 16))
    close(result.maps, expected, 1e-4)


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_a_text_added_changes_neither_score_nor_map_of_siglip(family: str) -> None:
    _, _, model = pair(family)
    x = images()
    for method in ("grad_cam", "grad_eclip", "le_grad"):
        for score in ("logit", "probability"):
            target = konkyo.Text("a cat", score)
            few, many = (
                konkyo.explain(model.prompted(texts=texts), x, method=method, target=target)
                for texts in (TEXTS[:2], [*TEXTS, "two red dog"])
            )
            close(few.maps, many.maps)
            close(few.scores, many.scores)


def test_a_text_added_changes_the_probability_of_clip() -> None:
    _, _, model = pair("clip")
    target, x = konkyo.Text("a cat", "probability"), images()
    few, many = (
        konkyo.explain(model.prompted(texts=t), x, method="grad_cam", target=target) for t in (TEXTS[:2], TEXTS)
    )
    assert (few.scores - many.scores).min() > 0.05


@pytest.mark.parametrize("family", BUILD)
def test_any_text_is_a_target_without_texts(family: str) -> None:
    network, tokenizer, model = pair(family)
    x = images()
    with torch.no_grad():
        output = network(**inputs(family, tokenizer, ["a photo of a dog"], x))
    cosine = output.image_embeds @ output.text_embeds[0]
    result = konkyo.explain(model, x, method="grad_cam", target="a photo of a dog")
    close(result.scores, cosine)
    assert result.labels == ("a photo of a dog",) * 2
    bound = konkyo.explain(model.prompted(texts=["a photo of a dog", "a cat"]), x, method="grad_cam", target=0)
    close(bound.maps / bound.maps.amax(), result.maps / result.maps.amax(), 1e-4)
    logit = konkyo.explain(model, x, method="grad_cam", target=konkyo.Text("a photo of a dog", "logit"))
    close(logit.scores, output.logits_per_image[:, 0])


def test_a_contrast_of_texts_is_the_difference_of_logits() -> None:
    _, _, model = pair("clip")
    x, bound = images(), model.prompted(texts=TEXTS)
    contrast = konkyo.explain(bound, x, method="grad_cam", target=konkyo.ContrastTarget("a cat", "a dog"))
    this, that = (konkyo.explain(bound, x, method="grad_cam", target=text) for text in ("a cat", "a dog"))
    close(contrast.signed, this.signed - that.signed, 1e-3)
    logits = bound(x).detach()
    close(contrast.scores, logits[:, 0] - logits[:, 1])
    free = konkyo.explain(model, x, method="grad_cam", target=konkyo.ContrastTarget("a cat", "a dog"))
    close(free.signed * model.task.scale, contrast.signed, 1e-3)


def test_several_templates_are_averaged() -> None:
    network, tokenizer, model = pair("clip")
    x = images()
    templates = ["a photo of {}", "a drawing of {}", "{}"]
    bound = model.prompted(texts=konkyo.models.prompts.Texts.of(["a cat", "a dog"], templates))
    with torch.no_grad():
        rows = [
            network(**inputs("clip", tokenizer, [t.format(name) for t in templates], x)) for name in ("a cat", "a dog")
        ]
    vectors = torch.stack([row.text_embeds.mean(0) / row.text_embeds.mean(0).norm() for row in rows])
    close(bound(x).detach(), network.logit_scale.exp().item() * rows[0].image_embeds @ vectors.T)
    assert bound.classes == ("a cat", "a dog")


def test_one_text_is_explained_by_its_similarity() -> None:
    _, _, model = pair("clip")
    x, one = images(), model.prompted(texts=["a cat"])
    free = konkyo.explain(model, x, method="grad_cam", target="a cat")
    for request in (None, 0, "a cat", konkyo.Text("a cat"), konkyo.TopK(1)):
        result = konkyo.explain(one, x, method="grad_cam", target=request)
        close(result.scores, free.scores)
        close(result.maps, free.maps)
        assert result.labels == ("a cat", "a cat")
    rise = konkyo.explain(one, x, method="rise", target="a cat", budget=20)
    close(rise.scores, free.scores)


def test_the_softmax_over_one_text_is_refused() -> None:
    _, _, model = pair("clip")
    for network, target in (
        (model.prompted(texts=["a cat"]), konkyo.Text("a cat", "probability")),
        (model.prompted(texts=["a cat"]), konkyo.ClassTarget(0, "probability")),
        (model, konkyo.Text("a cat", "probability")),
    ):
        with pytest.raises(konkyo.KonkyoError, match="of one text it is 1 whatever the image shows"):
            konkyo.explain(network, images(), method="grad_cam", target=target)


def test_one_text_of_siglip_has_a_probability() -> None:
    network, tokenizer, model = pair("siglip")
    x = images()
    with torch.no_grad():
        expected = network(**inputs("siglip", tokenizer, ["a cat"], x)).logits_per_image[:, 0].sigmoid()
    for bound in (model, model.prompted(texts=["a cat"])):
        result = konkyo.explain(bound, x, method="grad_cam", target=konkyo.Text("a cat", "probability"))
        close(result.scores, expected)


@pytest.mark.parametrize("family", BUILD)
def test_methods_of_all_families_run(family: str) -> None:
    _, _, model = pair(family)
    x, bound = images(), model.prompted(texts=TEXTS)
    names = ("eigen_cam", "attention_rollout", "transformer_attribution", "le_grad", "grad_eclip", "score_cam", "rise")
    results = konkyo.compare(bound, x, names, target="a dog", budget=20)
    for name, result in results.items():
        assert result.maps.std() > 0, name
    agnostic = konkyo.explain(model, x, method="eigen_cam")
    close(agnostic.maps, results["eigen_cam"].maps)
    assert agnostic.labels == ("the whole embedding",) * 2


def le_grad_by_hand(network: nn.Module, x: Tensor, text: Tensor) -> Tensor:
    """LeGrad of SigLIP: each block's tokens through the head, differentiated at its attention to them."""
    vision = network.vision_model
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda m, i, o: states.append(o if isinstance(o, Tensor) else o[0]))
        for layer in vision.encoder.layers
    ]
    with torch.no_grad():
        vision(pixel_values=x)
    for hook in hooks:
        hook.remove()
    head, total = vision.head, torch.zeros(len(x), 16)
    weights, biases = head.attention.in_proj_weight.detach().chunk(3), head.attention.in_proj_bias.detach().chunk(3)
    for tokens in states:
        tokens = vision.post_layernorm(tokens).detach()
        q, k, v = (
            (t @ w.T + b).unflatten(2, (4, 8)).transpose(1, 2)
            for t, w, b in zip((head.probe.expand(len(x), -1, -1).detach(), tokens, tokens), weights, biases)  # noqa: B905
        )
        attention = (q @ k.mT / 8**0.5).softmax(-1).requires_grad_()
        with torch.enable_grad():
            read = head.attention.out_proj((attention @ v).transpose(1, 2).flatten(2))
            embedding = (read + head.mlp(head.layernorm(read)))[:, 0]
            score = torch.cosine_similarity(embedding, text[None])
            (slope,) = torch.autograd.grad(score.sum(), attention)
        total += slope.relu().mean((1, 2)) / len(states)
    return total.view(-1, 4, 4)


def test_le_grad_through_the_pooling_attention_is_that_by_hand() -> None:
    network, _, model = pair("siglip")
    x = images()
    vector = model.task.embed(["a cat"])[0]
    result = konkyo.explain(model, x, method="le_grad", target=konkyo.Each("a cat", "a dog"), tokens="pooling")
    close(result.maps[::2], le_grad_by_hand(network, x, vector), 1e-4)
    with pytest.raises(konkyo.NotApplicable, match="by an attention of its own"):
        konkyo.explain(pair("clip")[2], x, method="le_grad", target="a cat", tokens="pooling")


def test_targets_come_back_from_a_file(tmp_path: Path) -> None:
    _, _, model = pair("siglip")
    x = images()
    for network, target in ((model, "a cat"), (model.prompted(texts=["a cat"]), None)):
        result = konkyo.explain(network, x, method="grad_cam", target=target)
        result.save(tmp_path / "maps.safetensors")
        again = konkyo.Explanation.load(tmp_path / "maps.safetensors")
        assert again.targets == result.targets
        close(again.targets[0](network(x)).detach(), result.scores)
    for task, target in (
        (ImageTextTask, TextSimilarity("a", torch.ones(2), 2.0, 1.0, True)),
        (ZeroShotTask, TextOfSeveral(0, 2.0, 1.0, "logit")),
    ):
        assert task.restored(task.saved(target)) == target


def test_errors_say_what_is_on_offer() -> None:
    _, _, model = pair("clip")
    x = images()
    with pytest.raises(konkyo.KonkyoError, match='was given no texts: give target="a photo of a cat"'):
        konkyo.explain(model, x, method="grad_cam")
    with pytest.raises(konkyo.KonkyoError, match="load it with that text"):
        konkyo.explain(model.prompted(texts=TEXTS), x, method="grad_cam", target="a bird")
    with pytest.raises(konkyo.KonkyoError, match="reads texts of up to 12 tokens; longer is 'a photo"):
        model.prompted(texts=["a photo of the cat on the left of the dog in a photo"])
    with pytest.raises(konkyo.KonkyoError, match=r"konkyo.Model\(module, processor=tokenizer\)"):
        konkyo.Model(BUILD["clip"]()).prompted(texts=TEXTS)
    with pytest.raises(konkyo.KonkyoError, match="target for image-text models"):
        konkyo.explain(konkyo.load("konkyo/scenes-classifier"), torch.randn(1, 3, 64, 64), target=konkyo.Text("cat"))


@pytest.mark.parametrize("family", BUILD)
def test_a_folder_is_loaded_with_its_tokenizer_and_preprocessing(family: str, tmp_path: Path) -> None:
    import transformers

    network, tokenizer, _ = pair(family)
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)  # of the class that goes with the network
    size = {"height": 64, "width": 64}
    pictures = {
        "clip": lambda: transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=size),
        "siglip": lambda: transformers.SiglipImageProcessor(size=size),
        "siglip2": lambda: transformers.Siglip2ImageProcessor(patch_size=16, max_num_patches=16),
    }[family]()
    pictures.save_pretrained(tmp_path)
    if family == "siglip2":  # its own class of tokenizers, Gemma's, knows no word of this small vocabulary
        with pytest.raises(konkyo.KonkyoError, match="no token for a part of 'a photo of a cat'"):
            konkyo.load(f"hf/{tmp_path}", texts=["cat", "dog"], template="a photo of a {}")
        return
    loaded = konkyo.load(f"hf/{tmp_path}", texts=["cat", "dog"], template="a photo of a {}")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8))
    prepared = dict(pictures(picture, return_tensors="pt"))
    tokens = inputs(family, tokenizer, ["a photo of a cat", "a photo of a dog"], images())
    words = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = network(**words, **prepared).logits_per_image
    result = konkyo.explain(loaded, picture, method="grad_cam", target=konkyo.Each("cat", "dog"))
    close(result.scores, expected[0], 2e-2)
    assert loaded.classes == ("cat", "dog")
    again = konkyo.explain(network.from_pretrained(tmp_path), picture, method="grad_cam", target="a photo of a dog")
    assert again.labels == ("a photo of a dog",)

"""Networks that answer are known by their class and their processor, from folders and as objects; ViLT in its order."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers import speakers
from konkyo.targets.answers import Answer, EachToken

pytestmark = [
    pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
QUESTION = "how many cat ?"


def _picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 52, 3), dtype=np.uint8))


def _processor(kind: str) -> Any:
    import transformers

    tokenizer, square = speakers.tokenizer(), {"height": 32, "width": 32}
    if kind.startswith("blip"):
        return transformers.BlipProcessor(transformers.BlipImageProcessor(size=square), tokenizer)
    if kind == "git":
        images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
        return transformers.GitProcessor(images, tokenizer)
    if kind == "vilt":
        images = transformers.ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=8)
        return transformers.ViltProcessor(images, tokenizer)
    return transformers.TrOCRProcessor(transformers.ViTImageProcessor(size=square), tokenizer)


BUILD: dict[str, Callable[[], nn.Module]] = {
    "blip captions": speakers.blip_captioner,
    "blip answers": lambda: speakers.blip_answerer(1),
    "git": speakers.git,
    "encoder and decoder": speakers.encoder_decoder,
    "vilt": speakers.vilt,
}


@pytest.mark.parametrize("kind", BUILD)
def test_a_folder_and_a_processor_give_the_same_model(kind: str, tmp_path: Path) -> None:
    network, processor = BUILD[kind](), _processor(kind)
    network.save_pretrained(tmp_path)  # type: ignore[operator]
    processor.save_pretrained(tmp_path)
    target = "yes" if kind == "vilt" else Answer("yes")
    question = QUESTION if kind in ("vilt", "blip answers") else None
    loaded, given = konkyo.load(f"hf/{tmp_path}"), konkyo.Model(network, processor=processor)
    assert loaded.preprocess is not None
    one, other = (konkyo.explain(m, _picture(), target=target, question=question) for m in (loaded, given))
    torch.testing.assert_close(one.signed, other.signed)
    assert one.labels == other.labels == ("yes",)
    asked = loaded.prompted(question=question)
    assert pickle.loads(pickle.dumps(asked.task)) == asked.task if kind == "vilt" else True


@pytest.mark.parametrize("kind", BUILD)
def test_pictures_are_prepared_as_the_processor_does(kind: str) -> None:
    processor = _processor(kind)
    model = konkyo.Model(BUILD[kind](), processor=processor)
    assert model.preprocess is not None
    expected = processor.image_processor(_picture(), return_tensors="pt")["pixel_values"][0]
    prepared = model.preprocess(_picture())
    assert prepared.shape == expected.shape
    assert float((prepared - expected).abs().mean()) < 0.01


def test_without_a_tokenizer_the_way_out_is_named() -> None:
    with pytest.raises(konkyo.KonkyoError, match=r"its tokenizer is needed: konkyo\.Model"):
        konkyo.explain(speakers.git(), torch.randn(1, 3, 32, 32))


def test_what_answers_questions_asks_for_one() -> None:
    image = torch.randn(1, 3, 32, 32)
    for kind, message in (("vilt", "give question="), ("blip answers", "answers questions")):
        with pytest.raises(konkyo.KonkyoError, match=message):
            konkyo.explain(konkyo.Model(BUILD[kind](), processor=_processor(kind)), image)


def test_questions_differ_by_image() -> None:
    model = konkyo.Model(speakers.blip_answerer(1), processor=_processor("blip"))
    images = torch.randn(2, 3, 32, 32)
    both = konkyo.explain(model, images, question=[QUESTION, "is there a dog ?"], target=Answer("yes"))
    second = konkyo.explain(model, images[1:], question="is there a dog ?", target=Answer("yes"))
    torch.testing.assert_close(both.signed[1], second.signed[0])
    assert [p.response.question for p in both.passages if p is not None] == [QUESTION, "is there a dog ?"]


def test_a_caption_goes_on_from_its_beginning() -> None:
    network = speakers.blip_captioner()
    model = konkyo.Model(network, processor=_processor("blip"))
    image = torch.randn(1, 3, 32, 32)
    result = konkyo.explain(model, image, question="a red", target=EachToken("cat mat"))
    library: Any = network
    with torch.no_grad():
        logits = library(image, torch.tensor([[4, 5, 11, 7, 10]])).logits[0]  # [BOS] a red cat mat
    expected = torch.stack([logits[2].log_softmax(0)[7], logits[3].log_softmax(0)[10]])
    torch.testing.assert_close(result.scores, expected)


# --- ViLT -------------------------------------------------------------------------------------------------------------


def _vilt() -> Any:
    network: Any = speakers.vilt()
    with torch.no_grad():  # they are zero in a new network
        for parameter in (network.vilt.embeddings.position_embeddings, network.vilt.embeddings.cls_token):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    return network


def _of_library(network: Any, image: Tensor, question: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the logits, the tokens after the block before the last, and the place of every image token, (h w, 2)."""
    asked = speakers.tokenizer()(question, return_tensors="pt")
    order: list[Tensor] = []
    embed = network.vilt.embeddings.visual_embed

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = embed(*args, **kwargs)
        order.append(result[2][0][0])
        return result

    network.vilt.embeddings.visual_embed = noted
    tokens: list[Tensor] = []
    handle = network.vilt.encoder.layer[1].register_forward_hook(lambda _, __, output: tokens.append(output[0]))
    try:
        logits = network(
            input_ids=asked.input_ids,
            attention_mask=asked.attention_mask,
            pixel_values=image,
            pixel_mask=torch.ones(1, *image.shape[2:]),
        ).logits
    finally:
        handle.remove()
        del network.vilt.embeddings.visual_embed
    return logits, tokens[0], order[0]


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (24, 40)])
@pytest.mark.parametrize("question", ["is", QUESTION, "is there a red cat on the blue mat or a dog on two red mat ?"])
def test_vilts_map_is_that_of_the_librarys_tokens_put_in_order(size: tuple[int, int], question: str) -> None:
    network, image = _vilt(), torch.randn(1, 3, *size)
    model = konkyo.Model(network, processor=_processor("vilt"))
    result = konkyo.explain(model, image, question=question, target="two")
    logits, tokens, order = _of_library(network, image, question)
    assert order[:, 0].tolist() != sorted(order[:, 0].tolist())  # the library has drawn an order
    torch.testing.assert_close(result.scores[0], logits[0, 2].detach(), atol=1e-5, rtol=1e-5)
    (slopes,) = torch.autograd.grad(logits[0, 2], tokens)
    cells, gradient = tokens[0, -len(order) :], slopes[0, -len(order) :]
    values = (cells * gradient.mean(0)).sum(1).detach()
    expected = torch.zeros(size[0] // 8, size[1] // 8)
    expected[order[:, 0], order[:, 1]] = values
    torch.testing.assert_close(result.signed[0], expected, atol=1e-5, rtol=1e-3)
    assert result.layer == "vilt.encoder.layer.1"


def test_vilt_draws_nothing_so_that_perturbed_images_compare() -> None:
    network, images = _vilt(), torch.randn(3, 3, 32, 32)
    model = konkyo.Model(network, processor=_processor("vilt")).prompted(question=QUESTION)
    with torch.no_grad():
        together, again = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, again)
    result = konkyo.explain(model, images[:1], method="rise", masks=8)
    assert not any("random" in sentence for sentence in result.assumptions)


def test_vilts_answers_do_not_exclude_each_other() -> None:
    model = konkyo.Model(_vilt(), processor=_processor("vilt"))
    (decision,) = konkyo.explain(model, torch.randn(1, 3, 32, 32), question=QUESTION).decisions
    assert model.classes == ("yes", "no", "two", "red")
    assert model.prompted(question=QUESTION).multilabel
    assert decision is not None
    assert not decision.exclusive

"""Networks of transformers that answer in words, against the library's own forward and generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers import speakers
from konkyo.models.texts import blip, encoder_decoder, git
from konkyo.targets.answers import Answer, EachToken
from konkyo.tasks.answers import AnswerTask, Speaker

# Networks of random weights hardly look at the image.
pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")

QUESTION = "how many cat ?"


@dataclass(frozen=True)
class Family:
    """A network, how it speaks, and its library's own view of it."""

    build: Callable[[], nn.Module]
    speaker: Callable[[nn.Module, Any], Speaker]
    tokens: Callable[[Any, Tensor], Tensor]
    """(network, images) -> the image's tokens (N, 1 + 16, C), by the library's encoder."""
    generate: Callable[[Any, Tensor], Tensor]
    """(network, image) -> the ids that the library generates greedily, with what comes before them."""
    log_probability: Callable[[Any, Tensor, list[int]], Tensor]
    """(network, image, answer) -> the sum of the answer's log-probabilities, by the library's whole forward."""
    before: int = 1
    question: str = ""


def _greedy() -> dict[str, Any]:
    return {"do_sample": False, "num_beams": 1, "max_new_tokens": 6}


def _asked() -> Any:
    return speakers.tokenizer()(QUESTION, return_tensors="pt")


def _summed(logits: Tensor, answer: list[int]) -> Tensor:
    """Returns the sum over the answer of log softmax at the place before each token."""
    places = logits[0, -len(answer) - 1 : -1]
    return torch.stack([place.log_softmax(0)[token] for place, token in zip(places, answer, strict=True)]).sum()


def _blip_answers(network: Any, image: Tensor, answer: list[int]) -> Tensor:
    """Returns it from the library's loss, which is the mean of the answer's negative log-probabilities."""
    asked = _asked()
    loss: Tensor = network(
        input_ids=asked.input_ids,
        attention_mask=asked.attention_mask,
        pixel_values=image,
        labels=torch.tensor([[4, *answer]]),
    ).loss
    return -loss * len(answer)


FAMILIES = {
    "blip captions": Family(
        speakers.blip_captioner,
        blip.captioner,
        lambda network, images: network.vision_model(images).last_hidden_state,
        lambda network, image: network.generate(image, **_greedy()),
        lambda network, image, answer: _summed(network(image, torch.tensor([[4, *answer]])).logits, answer),
    ),
    "blip answers": Family(
        lambda: speakers.blip_answerer(1),
        blip.answerer,
        lambda network, images: network.vision_model(images).last_hidden_state,
        lambda network, image: network.generate(pixel_values=image, **_asked_ids(), **_greedy()),
        _blip_answers,
        question=QUESTION,
    ),
    "git": Family(
        speakers.git,
        git.speaker,
        lambda network, images: network.git.image_encoder(images).last_hidden_state,
        lambda network, image: network.generate(pixel_values=image, input_ids=torch.tensor([[1]]), **_greedy()),
        lambda network, image, answer: _summed(
            network(pixel_values=image, input_ids=torch.tensor([[1, *answer]])).logits, answer
        ),
    ),
    "encoder and decoder": Family(
        speakers.encoder_decoder,
        encoder_decoder.speaker,
        lambda network, images: network.encoder(images).last_hidden_state,
        lambda network, image: network.generate(image, **_greedy()),
        lambda network, image, answer: _summed(
            network(image, decoder_input_ids=torch.tensor([[1, *answer]])).logits, answer
        ),
    ),
}


def _asked_ids() -> dict[str, Tensor]:
    asked = _asked()
    return {"input_ids": asked.input_ids, "attention_mask": asked.attention_mask}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def _model(family: Family, network: nn.Module) -> konkyo.Model:
    speaker = family.speaker(network, speakers.tokenizer())
    return konkyo.Model(network, task=AnswerTask(speaker, family.question, longest=6))


def test_teacher_forcing_answers_as_the_library_generates(family: Family) -> None:
    network, image = family.build(), torch.randn(1, 3, 32, 32)
    result = konkyo.explain(_model(family, network), image)
    (passage,) = result.passages
    assert passage is not None
    expected = family.generate(network, image)[0, family.before :].tolist()
    assert list(passage.response.ids) == [token for token in expected if token != 2]
    assert len(passage.response.ids) > 1


def test_the_score_is_that_of_the_librarys_forward(family: Family) -> None:
    network, image = family.build(), torch.randn(1, 3, 32, 32)
    answer = [5, 7, 10]  # "a cat mat"
    result = konkyo.explain(_model(family, network), image, target=Answer("a cat mat"))
    torch.testing.assert_close(result.scores[0], family.log_probability(network, image, answer).detach())


def test_grad_cam_is_autograd_by_hand_at_the_encoders_tokens(family: Family) -> None:
    network, image = family.build(), torch.randn(1, 3, 32, 32)
    result = konkyo.explain(_model(family, network), image, target=Answer("a cat mat"))
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output[0] if not isinstance(output, Tensor) else output)

    handle = network.get_submodule(result.layer).register_forward_hook(keep)
    score = family.log_probability(network, image, [5, 7, 10])
    handle.remove()
    (tokens,) = seen
    (gradient,) = torch.autograd.grad(score, tokens)
    cells, slopes = tokens[0, 1:], gradient[0, 1:]
    expected = (cells * slopes.mean(0)).sum(1).view(4, 4)
    torch.testing.assert_close(result.signed[0], expected.detach(), atol=1e-5, rtol=1e-4)


def test_cells_are_at_their_own_places(family: Family) -> None:
    network, image = family.build(), torch.randn(1, 3, 32, 32)
    changed = image.clone()
    changed[..., 8:16, 16:24] += 3  # row 1, column 2 of patches
    layer = konkyo.explain(_model(family, network), image).layer
    before, after = (_cells(network, family, layer, x) for x in (image, changed))
    assert int((after - before).norm(dim=1).argmax()) == 1 * 4 + 2


def _cells(network: nn.Module, family: Family, layer: str, image: Tensor) -> Tensor:
    """Returns the cells (16, C) of the automatic layer."""
    seen: list[Any] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        family.log_probability(network, image, [5])
    handle.remove()
    tokens: Tensor = seen[0] if isinstance(seen[0], Tensor) else seen[0][0]
    return tokens[0, 1:]


def test_a_row_for_each_token_adds_up_to_the_answer(family: Family) -> None:
    network, image = family.build(), torch.randn(1, 3, 32, 32)
    model = _model(family, network)
    whole = konkyo.explain(model, image, method="hires_cam", target=Answer("a cat mat"))
    parts = konkyo.explain(model, image, method="hires_cam", target=EachToken("a cat mat"))
    assert parts.labels == ("a", "cat", "mat")
    torch.testing.assert_close(parts.scores.sum(), whole.scores[0])
    torch.testing.assert_close(parts.signed.sum(0), whole.signed[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["rise", "occlusion", "ablation_cam", "integrated_gradients", "eigen_cam"])
def test_methods_of_all_kinds_explain_an_answer(family: Family, method: str) -> None:
    network, image = family.build(), torch.randn(1, 3, 32, 32)
    options = {"masks": 8} if method == "rise" else {"steps": 2} if method == "integrated_gradients" else {}
    result = konkyo.explain(_model(family, network), image, method=method, **options)
    assert result.maps.isfinite().all()
    assert result.maps.amax() > result.maps.amin()

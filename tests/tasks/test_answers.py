"""Answers in words: what of them is explained, how several images and answers go together, and what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers import speakers
from konkyo.models.texts import blip
from konkyo.targets.answers import Answer, EachToken, EachWord, Token
from konkyo.tasks.answers import AnswerTask, Speaker, Vocabulary
from konkyo.tasks.responses import Passage, Response

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


@dataclass(frozen=True)
class Quadrants(Speaker):
    """It names the brightest quadrant of an image by its token, then says "?" and ends."""

    blank: bool = False
    """Whether what it says does not depend on the image."""

    def encode(self, module: nn.Module, images: Tensor, question: str) -> Tensor:
        grid: Tensor = module(images)
        return grid.mean(1).flatten(1) * (0 if self.blank else 1)

    def logits(self, module: nn.Module, encoded: Any, answer: Sequence[int]) -> Tensor:
        count = len(speakers.WORDS)
        rows = encoded.new_zeros(len(encoded), len(answer) + 1, count)
        first = torch.cat([encoded.new_zeros(len(encoded), 5), encoded, encoded.new_zeros(len(encoded), count - 9)], 1)
        last = nn.functional.one_hot(torch.tensor([24, 2]), count).to(encoded)
        places = [first, last[0].expand_as(first), *[last[1].expand_as(first)] * len(answer)]
        return rows + torch.stack(places[: len(answer) + 1], 1)


def _quadrants(blank: bool = False) -> konkyo.Model:
    """Returns a network whose grid has a cell per quadrant; its words are "a", "the", "cat", "dog", as they lie."""
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.Conv2d(4, 4, 1))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.02)
    speaker = Quadrants(Vocabulary(speakers.tokenizer(), frozenset({2})), blank)
    return konkyo.Model(network, task=AnswerTask(speaker))


def _bright(*quadrants: int) -> Tensor:
    """Returns an image for each quadrant (N, 3, 16, 16), white there and black elsewhere."""
    images = torch.zeros(len(quadrants), 3, 16, 16)
    for image, quadrant in zip(images, quadrants, strict=True):
        top, left = 8 * (quadrant // 2), 8 * (quadrant % 2)
        image[:, top : top + 8, left : left + 8] = 3
    return images


def test_every_image_has_its_own_answer_and_a_map_of_its_own() -> None:
    result = konkyo.explain(_quadrants(), _bright(2, 1, 3))
    assert result.labels == ("cat?", "the?", "dog?")
    assert result.image_index.tolist() == [0, 1, 2]
    assert result.maps.flatten(1).argmax(1).tolist() == [2, 1, 3]
    alone = konkyo.explain(_quadrants(), _bright(1))
    torch.testing.assert_close(result.maps[1], alone.maps[0])


def test_a_word_has_its_place_and_one_that_is_of_no_place_has_none() -> None:
    result = konkyo.explain(_quadrants(), _bright(2), target=EachToken(), method="hires_cam")
    assert result.labels == ("cat", "?")
    assert int(result.maps[0].argmax()) == 2
    assert result.maps[1].abs().max() == 0


def test_a_contrast_is_the_difference_of_two_answers() -> None:
    model, image = _quadrants(), _bright(2)
    contrast = konkyo.explain(
        model, image, method="hires_cam", target=konkyo.ContrastTarget(Answer("cat"), Answer("dog"))
    )
    this, that = (konkyo.explain(model, image, target=Answer(text)) for text in ("cat", "dog"))
    assert contrast.labels == ("cat, not dog",)
    torch.testing.assert_close(contrast.scores, this.scores - that.scores)
    assert int(contrast.maps.argmax()) == 2
    by_names = konkyo.explain(model, image, method="hires_cam", target=konkyo.ContrastTarget("cat", "dog"))
    torch.testing.assert_close(by_names.signed, contrast.signed)


def test_several_requests_share_one_forward() -> None:
    result = konkyo.explain(
        _quadrants(), _bright(0), target=konkyo.Each(Answer(), Token(1), Answer("dog"), Token(0, "cat"))
    )
    assert result.labels == ("a?", "?", "dog", "cat")
    texts = [passage.response.text for passage in result.passages if passage is not None]
    assert texts == ["a?", "a?", "dog", "cat"]
    assert [p.response.generated for p in result.passages if p is not None] == [True, True, False, False]
    torch.testing.assert_close(
        result.scores[0], result.scores[1] + konkyo.explain(_quadrants(), _bright(0), target=Token(0)).scores[0]
    )


def test_a_target_for_each_image() -> None:
    result = konkyo.explain(_quadrants(), _bright(2, 1), target=[Answer("dog"), Token(0)])
    assert result.labels == ("dog", "the")


def test_what_the_answer_is_stays_with_the_result(tmp_path: Path) -> None:
    result = konkyo.explain(_quadrants(), _bright(2, 1), target=EachToken())
    passage = result.passages[0]
    assert passage == Passage(Response("", (7, 24), ("cat", "?")), (0,))
    for name in ("maps.npz", "maps.safetensors"):
        loaded = konkyo.Explanation.load(result.save(tmp_path / name))
        assert loaded.passages == result.passages
        assert loaded.targets == result.targets
    assert result[2].passages[0] == result.passages[2]


def test_an_answer_that_no_image_made_is_said_to_come_from_the_text() -> None:
    (of_image,) = konkyo.explain(_quadrants(), _bright(2), target=Token(0)).diagnosis
    assert of_image.ok
    (by_occlusion,) = konkyo.explain(_quadrants(), _bright(2), target=Token(0), method="occlusion", window=8).diagnosis
    assert by_occlusion.ok
    (blind,) = konkyo.explain(_quadrants(blank=True), _bright(2), target=Token(0), method="eigen_cam").diagnosis
    assert blind.kind == "from the text"
    assert "a blank image has the score" in blind.message


def test_words_are_joined_of_their_tokens() -> None:
    tokenizer = speakers.tokenizer()
    vocabulary = Vocabulary(tokenizer, frozenset())
    ids = vocabulary.ids("two umbrellas on the mat")
    response = Response("", ids, vocabulary.pieces(ids))
    assert response.text == "two umbrellas on the mat"
    assert [response.piece(word) for word in response.words()] == ["two", "umbrellas", "on", "the", "mat"]
    assert [len(word) for word in response.words()] == [1, 2, 1, 1, 1]


def test_words_and_tokens_are_found_or_listed() -> None:
    network = speakers.blip_captioner()
    model = konkyo.Model(network, task=AnswerTask(blip.captioner(network, speakers.tokenizer())))
    image, text = torch.randn(1, 3, 32, 32), "two umbrellas on the mat"
    words = konkyo.explain(model, image, target=EachWord(text))
    assert words.labels == ("two", "umbrellas", "on", "the", "mat")
    one = konkyo.explain(model, image, target=Token("Umbrellas,", text))
    torch.testing.assert_close(one.scores[0], words.scores[1])
    both = konkyo.explain(model, image, target=Token("the mat", text))
    torch.testing.assert_close(both.scores[0], words.scores[3:].sum())
    last = konkyo.explain(model, image, target=Token(-1, text))
    torch.testing.assert_close(last.scores[0], words.scores[4])
    with pytest.raises(konkyo.KonkyoError, match=r"no word 'cat' in the answer .*: two, umbrellas"):
        konkyo.explain(model, image, target=Token("cat", text))
    with pytest.raises(konkyo.KonkyoError, match="token 9 of an answer with 6 tokens: 0 'two'"):
        konkyo.explain(model, image, target=Token(9, text))
    with pytest.raises(konkyo.KonkyoError, match=r"a target is Answer\("):
        konkyo.explain(model, image, target=3)


def test_the_method_says_what_of_an_answer_is_explained() -> None:
    model, image = _quadrants(), _bright(2)
    logp = konkyo.explain(model, image, target=Token(0)).scores
    torch.testing.assert_close(konkyo.explain(model, image, target=Token(0), method="rise", masks=4).scores, logp.exp())
    logit = konkyo.explain(model, image, target=Token(0, score="logit"), method="rise", masks=4).scores
    assert float(logit) != float(logp.exp())


def test_a_batch_cannot_be_run_without_its_answers() -> None:
    model = _quadrants()
    assert model(_bright(2)).shape == (1, 2, 2)
    with pytest.raises(konkyo.KonkyoError, match="an answer of its own"):
        model(_bright(2, 1))


def test_a_network_that_says_nothing_is_refused_in_words() -> None:
    model = _quadrants()
    silent = konkyo.Model(model.module, task=AnswerTask(model.task.speaker, longest=0))  # type: ignore[attr-defined]
    with pytest.raises(konkyo.KonkyoError, match="answers nothing; give the answer"):
        konkyo.explain(silent, _bright(0))


def test_the_options_of_the_command_line() -> None:
    from konkyo.tasks.base import TargetRequest

    task = _quadrants().task
    assert task.request(TargetRequest(), "m") is None
    assert task.request(TargetRequest(classes=("yes",)), "m") == konkyo.Each(Answer("yes"))
    contrast = konkyo.Each(konkyo.ContrastTarget(Answer("yes"), Answer("no")))
    assert task.request(TargetRequest(classes=("yes",), against="no"), "m") == contrast
    with pytest.raises(konkyo.KonkyoError, match="--top: m is a network that answers in words"):
        task.request(TargetRequest(top=2), "m")

"""ScenesVQA against loops over cells, the weights that ship against their card, and maps with ground truth."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import konkyo
from konkyo.data.samples import samples
from konkyo.data.sets.questions import ANSWERS, LONGEST, WORDS, Questions, tokens
from konkyo.evaluation.evaluate import evaluate
from konkyo.explanation.words import score_in_words
from konkyo.models.networks.questions import COLOURS, ScenesVQA, _places
from konkyo.report.of_explanations import image_rows


@pytest.fixture
def network() -> ScenesVQA:
    """A random network of few channels, whose normalisations have seen something."""
    module = ScenesVQA(width=6, heads=2).train()
    for _ in range(3):
        module(torch.randn(2, 3, 128, 128), tokens("is there a cat ?")[None])
    return module.eval()


def modulated(module: torch.nn.Module, grid: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """A block, cell by cell: (C, h, w) with scale and shift (C,) -> (C, h, w)."""
    channels, height, width = grid.shape
    inner = torch.zeros_like(grid)
    for y in range(height):
        for x in range(width):
            place = torch.tensor([-1 + 2 * x / (width - 1), -1 + 2 * y / (height - 1)])
            cell = torch.cat([grid[:, y, x], place])
            inner[:, y, x] = module.conv1.weight[:, :, 0, 0] @ cell + module.conv1.bias
    outer = torch.zeros_like(grid)
    for y in range(height):
        for x in range(width):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        around = inner[:, y + dy, x + dx].relu()
                        outer[:, y, x] += module.conv2.weight[:, :, dy + 1, dx + 1] @ around
    norm = module.norm
    result = torch.zeros_like(grid)
    for c in range(channels):
        usual = (outer[c] - norm.running_mean[c]) / math.sqrt(norm.running_var[c] + norm.eps)
        result[c] = inner[c].relu() + (usual * (1 + scale[c]) + shift[c]).relu()
    return result


@torch.no_grad()
def test_the_answer_is_that_of_loops_over_cells(network):
    grid, colours = torch.randn(1, 6, 3, 4).relu(), torch.rand(1, COLOURS, 3, 4)
    words = tokens("is the cat left or right of the tulip ?")
    state = torch.zeros(1, 1, 6)
    for number in words.tolist():  # word by word
        _, state = network.reader(network.words(torch.tensor([[number]])), state)
    question = state[0, 0]
    scale1, scale2, shift1, shift2 = network.modulation(question).chunk(4)
    cells = modulated(network.blocks[0], grid[0], scale1, shift1)
    cells = modulated(network.blocks[1], cells, scale2, shift2)
    reads = [cells.mean((1, 2)), cells.amax((1, 2))]
    for head in range(2):
        query = network.query(question)[6 * head : 6 * head + 6]
        weights = {(y, x): math.exp(float(query @ cells[:, y, x]) / math.sqrt(6)) for y in range(3) for x in range(4)}
        total = sum(weights.values())
        content, paint, mean_place = torch.zeros(6), torch.zeros(COLOURS), torch.zeros(2)
        for (y, x), weight in weights.items():
            content += weight / total * cells[:, y, x]
            paint += weight / total * colours[0, :, y, x]
            mean_place += weight / total * torch.tensor([-1 + 2 * x / 3, -1 + 2 * y / 2])
        reads += [content, paint, mean_place]
    expected = network.head(torch.cat([*reads, question]))
    torch.testing.assert_close(
        network.answer(torch.cat([grid, colours], 1), words[None])[0], expected, atol=1e-5, rtol=1e-5
    )


def test_places_are_x_and_y_from_left_top_to_right_bottom():
    places = _places(torch.zeros(1, 1, 2, 3))
    assert places.tolist() == [[[-1, 0, 1], [-1, 0, 1]], [[-1, -1, -1], [1, 1, 1]]]


def test_the_image_is_seen_through_the_cells_alone(network):
    """With the cells detached nothing of the gradient is left; with them it is there."""
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    words = tokens("how many cats ?")[None]
    output = network(images, words)
    assert output.shape == (1, len(ANSWERS))
    assert torch.autograd.grad(output[0, 0], images)[0].abs().max() > 0
    handle = network.cells.register_forward_hook(lambda module, inputs, output: output.detach())
    with handle:
        assert not torch.autograd.grad(network(images, words)[0, 0], images, allow_unused=True)[0]


def test_one_question_for_all_images_is_that_question_for_each(network):
    images = torch.randn(3, 3, 128, 128)
    words = torch.stack([tokens("how many cats ?"), tokens("is there a cat ?"), tokens("what is on the left ?")])
    each = network(images, words)
    for number in range(3):
        alone = network(images, words[number : number + 1])[number]
        torch.testing.assert_close(each[number], alone, atol=1e-5, rtol=1e-5)
    assert (each[0] - network(images, words[1:2])[0]).abs().max() > 1e-4


def test_words_are_numbered_from_one_and_padded_in_front():
    words = tokens("is there a police car ?")
    assert words.shape == (LONGEST,)
    assert words[:-6].eq(0).all()
    assert [WORDS[i - 1] for i in words[-6:].tolist()] == ["is", "there", "a", "police", "car", "?"]


WEIGHTS = Path(konkyo.__file__).parent / "models" / "weights"


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    return konkyo.load("konkyo/scenes-vqa")


@torch.no_grad()
def test_the_network_that_ships_answers_as_its_card_says(model):
    card = json.loads((WEIGHTS / "scenes-vqa.json").read_text())
    assert (WEIGHTS / "scenes-vqa.safetensors").stat().st_size <= 4_000_000
    right = []
    for scene, questions in Questions(120, seed=5_000_000):
        words = torch.stack([tokens(question.text) for question in questions])
        images = model.preprocess(scene.image)[None]
        cells = model.module.see(images).expand(len(words), -1, -1, -1)
        for question, index in zip(questions, model.module.answer(cells, words).argmax(1).tolist(), strict=True):
            right.append(model.classes[index] == question.answer)
    assert sum(right) / len(right) > card["unseen_scenes"]["accuracy"] - 0.02


def test_a_question_makes_it_a_classifier_of_images_whose_classes_are_the_answers(model):
    scene, questions = Questions(1, seed=31)[0]
    question = questions[0]
    result = konkyo.explain(model, scene.image, question=question.text)
    assert result.labels == (question.answer,)
    words = tokens(question.text)[None]
    images = model.preprocess(scene.image)[None]
    torch.testing.assert_close(result.scores[0], model.module(images, words)[0].max().detach())
    network, body = model.module, model.module.body  # by hand, at the cells
    grid = body.stage4(body.stage3(body.stage2(body.stage1(body.stem(images)))))
    cells = torch.cat([network.cells.things(grid), network.colours(images)], 1).detach().requires_grad_()
    halved = torch.cat([network.reduce(cells), torch.nn.functional.avg_pool2d(cells[:, 96:], 2)], 1)
    (gradient,) = torch.autograd.grad(network.answer(halved, words)[0].max(), cells)
    expected = (gradient.mean((2, 3), keepdim=True) * cells).sum(1).relu()[0]
    torch.testing.assert_close(result.maps[0], expected.detach(), atol=1e-5, rtol=1e-4)


def test_the_automatic_layer_is_the_cells_and_is_traced_once_for_all_questions(model):
    first = model.prompted(question="is there a cat ?").automatic_layers((3, 128, 128))
    assert [layer.name for layer in first] == ["cells"]
    assert model.prompted(question="how many objects ?").known_layers((3, 128, 128)) == first


def test_every_image_may_have_a_question_of_its_own(model):
    scenes = [scene.image for scene, _ in Questions(2, seed=8)]
    asked = ["how many objects ?", "what is on the left ?"]
    both = konkyo.explain(model, scenes, question=asked)
    for number, (image, question) in enumerate(zip(scenes, asked, strict=True)):
        alone = konkyo.explain(model, image, question=question)
        torch.testing.assert_close(both.maps[number], alone.maps[0], atol=1e-5, rtol=1e-4)
        assert both.labels[number] == alone.labels[0]


def test_samples_ask_their_own_questions(model):
    data = list(samples("questions:2"))
    result = konkyo.explain(model, data)
    for number, sample in enumerate(data):
        alone = konkyo.explain(model, sample.image, question=sample.question)
        torch.testing.assert_close(result.maps[number], alone.maps[0], atol=1e-5, rtol=1e-4)
    other = konkyo.explain(model, data[0], question="how many objects ?")  # what is said goes before what samples hold
    assert other.labels[0] in "01234"


def test_without_a_question_or_with_one_it_does_not_know_it_says_so(model):
    image = Questions(1)[0][0].image
    with pytest.raises(konkyo.KonkyoError, match="question"):
        konkyo.explain(model, image)
    with pytest.raises(konkyo.KonkyoError, match="no question about drawn scenes"):
        konkyo.explain(model, image, question="is there a dog ?")
    with pytest.raises(konkyo.KonkyoError, match="wrong too often about colours"):
        konkyo.explain(model, image, question="what color is the cat?")
    with pytest.raises(konkyo.KonkyoError, match="reads no text"):
        konkyo.explain(konkyo.load("konkyo/scenes-classifier"), image, question="why ?")


def test_maps_of_a_yes_lie_at_the_evidence_far_more_than_chance(model):
    inside, share = [], []
    for scene, (question,) in Questions(60, seed=41, kinds=["exist"]):
        if question.answer == "yes":
            maps = konkyo.explain(model, scene.image, question=question.text, target="yes").at((128, 128))
            inside.append(float(maps[0][question.single].sum() / maps[0].sum().clamp_min(1e-9)))
            share.append(float(question.single.float().mean()))
    assert sum(inside) > 2 * sum(share)


def test_evaluate_asks_every_samples_question(model):
    data = samples("questions:4")
    result = evaluate(model, data, ["grad_cam"], ["ebpg@evidence", "ebpg@mask"], explained="label")
    assert [row.explained for row in result.rows] == [sample.label for sample in data]
    for row, sample in enumerate(data):
        (thing,) = sample.annotations
        map_ = konkyo.explain(model, sample.image, question=sample.question, target=sample.label)
        heat = map_.unit((128, 128))[0].double()
        for column, mask in (("ebpg@evidence", thing.evidence), ("ebpg@mask", thing.mask)):
            value = float(result.values("grad_cam", column)[row])
            if mask is None or not heat.sum():
                assert value != value
            else:
                assert value == pytest.approx(float(heat[mask].sum() / heat.sum()), abs=1e-4)
    with pytest.raises(konkyo.KonkyoError, match="reads no text"):
        evaluate(konkyo.load("konkyo/scenes-classifier"), data, ["grad_cam"], ["ebpg@mask"])


def test_the_question_is_kept_with_the_maps_and_said_in_words(model, tmp_path):
    data = list(samples("questions:2"))
    result = konkyo.explain(model, data)
    asked = tuple(sample.question for sample in data)
    assert result.questions == asked
    assert result[1].questions == asked[1:]
    loaded = konkyo.Explanation.load(result.save(tmp_path / "maps.npz"))
    assert loaded.questions == asked
    assert score_in_words(loaded, 0).startswith(f"{asked[0]} {result.labels[0]} (logit ")
    assert image_rows([loaded])[1].name == f"{data[1].name}: {asked[1]}"
    plain = konkyo.explain(konkyo.load("konkyo/scenes-classifier"), data[0].image)
    assert plain.questions == ()

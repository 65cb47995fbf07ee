"""ScenesVQA: its modulation and reading against loops over cells, and that it sees the image through its cells alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from konkyo.data.sets.questions import ANSWERS, LONGEST, WORDS, tokens
from konkyo.models.networks.questions import ScenesVQA, _places


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
    grid, words = torch.randn(1, 6, 3, 4).relu(), tokens("is the cat left or right of the tulip ?")
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
        content, mean_place = torch.zeros(6), torch.zeros(2)
        for (y, x), weight in weights.items():
            content += weight / total * cells[:, y, x]
            mean_place += weight / total * torch.tensor([-1 + 2 * x / 3, -1 + 2 * y / 2])
        reads += [content, mean_place]
    expected = network.head(torch.cat([*reads, question]))
    torch.testing.assert_close(network.answer(grid, words[None])[0], expected, atol=1e-5, rtol=1e-5)


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

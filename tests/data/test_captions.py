"""Captions of scenes and their truth, against the scenes' own labels, colours and boxes."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch

from konkyo.data.sets.captions import GAP, WORDS, Caption, facts_of, near_misses, true_caption
from konkyo.data.sets.scenes import CLASSES, COLOURS, Scene, Scenes


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return list(Scenes(80, seed=21, size=64, objects=(1, 3)))


def said(scene: Scene, caption: Caption) -> float:
    """Whether a caption is true, by a loop over all pairs of objects; 0.5 where it cannot be told."""
    objects = list(zip(scene.labels.tolist(), scene.colours, ((scene.boxes[:, 0] + scene.boxes[:, 2]) / 128).tolist()))  # noqa: B905

    def there(label: int, colour: int) -> float:
        names = [name for other, name, _ in objects if other == label]
        if colour == len(COLOURS) or COLOURS[colour] in names:
            return float(bool(names))
        return 0.5 if "" in names else 0.0

    parts = [there(caption.label, caption.colour)]
    if caption.other >= 0:
        parts.append(there(caption.other, caption.other_colour))
    if caption.left:
        ways = [
            b - a for (k, _, a), (m, _, b) in product(objects, objects) if k == caption.label and m == caption.other
        ]
        sides = {1 if way > GAP else -1 if way < -GAP else 0 for way in ways}
        parts.append(1.0 if sides == {1} else 0.0 if sides in ({-1}, set()) else 0.5)
    return min(parts)


def test_the_truth_is_that_of_the_scene(scenes: list[Scene]) -> None:
    rng = random.Random(3)
    facts = facts_of(scenes)
    own = [true_caption(objects, left, rng) for objects, left in zip(*facts, strict=True)]
    captions = [*own, *(miss for caption in own for miss in near_misses(caption, rng))]
    truth = facts.truth(captions)
    assert truth.tolist() == [[said(scene, caption) for caption in captions] for scene in scenes]
    assert (truth.diag() == 1).all()
    assert {0.0, 0.5, 1.0} == set(truth.flatten().tolist())
    assert any(caption.left for caption in own)
    assert any(caption.colour < len(COLOURS) for caption in own)


def test_a_near_miss_is_another_caption(scenes: list[Scene]) -> None:
    rng = random.Random(4)
    facts = facts_of(scenes)
    for objects, left in zip(*facts, strict=True):
        caption = true_caption(objects, left, rng)
        assert all(miss != caption and miss.text != caption.text for miss in near_misses(caption, rng))


def test_a_mirrored_scene_has_its_sides_swapped(scenes: list[Scene]) -> None:
    facts = facts_of(scenes)
    mirrored = facts.mirrored(torch.arange(len(scenes)) % 2 == 0)
    n, a, b = (facts.left == 1).nonzero()[0].tolist()
    this, that = Caption(a, other=b, left=True), Caption(b, other=a, left=True)
    truth, after = facts.truth([this, that])[n], mirrored.truth([this, that])[n]
    assert truth.tolist() == [1, 0]
    assert after.tolist() == ([0, 1] if n % 2 == 0 else [1, 0])
    assert torch.equal(mirrored.objects, facts.objects)


def test_captions_are_words_that_the_model_knows(scenes: list[Scene]) -> None:
    rng = random.Random(5)
    facts = facts_of(scenes)
    for objects, left in zip(*facts, strict=True):
        caption = true_caption(objects, left, rng)
        for text in (caption.text, caption.worded(rng)):
            assert set(text.split()) <= set(WORDS)
            assert "a orange" not in text
    assert Caption(0, COLOURS.index("orange"), 2, left=True).text == "an orange cat left of a taxi"
    assert Caption(3).text == f"a {CLASSES[3].replace('_', ' ')}" == "a police car"

"""Questions about drawn scenes: their answers and masks against what a slow reader finds in the scene itself."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from torch import Tensor

from konkyo.data.samples import UNSEEN, samples
from konkyo.data.sets.questions import (
    ANSWERED,
    ANSWERS,
    GAP,
    KINDS,
    LONGEST,
    NAMES,
    PLURALS,
    WORDS,
    Question,
    Questions,
    normalised,
    tokens,
)
from konkyo.data.sets.scenes import CLASSES, Scene
from konkyo.errors import KonkyoError

TWIN = {"cat": "rabbit", "taxi": "police car", "sailboat": "steamboat", "tulip": "daisy", "lighthouse": "windmill"}
TWIN |= {b: a for a, b in TWIN.items()}


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Scene, tuple[Question, ...]]]:
    return list(Questions(80, seed=3, each=2, kinds=tuple(KINDS)))


def pixels(scene: Scene, *, bodies: list[str] | None = None, evidence: list[str] | None = None) -> set[tuple[int, int]]:
    """The pixels of the bodies (whole objects without evidence) and of the evidence of objects of these classes."""
    chosen = set()
    names = [CLASSES[label].replace("_", " ") for label in scene.labels.tolist()]
    for name, mask, part in zip(names, scene.masks, scene.evidence, strict=True):
        for y, x in mask.nonzero().tolist():
            if name in ((evidence or []) if part[y, x] else (bodies or [])):
                chosen.add((y, x))
    return chosen


def places(mask: Tensor | None) -> set[tuple[int, int]]:
    return set() if mask is None else {(y, x) for y, x in mask.nonzero().tolist()}


def expected(scene: Scene, text: str) -> tuple[str, set[tuple[int, int]], set[tuple[int, int]]]:
    """The answer and both sets of pixels, read off the question's words and the scene's objects alone."""
    names = [CLASSES[label].replace("_", " ") for label in scene.labels.tolist()]
    middles = [(x0 + x1) / 2 for x0, _, x1, _ in scene.boxes.tolist()]
    every = list(NAMES)
    if found := re.fullmatch(r"is there a (.+) \?", text):
        name = found[1]
        shown = [name] if name in names else [TWIN[name]]
        return (
            "yes" if name in names else "no",
            pixels(scene, evidence=shown),
            pixels(scene, evidence=[name, TWIN[name]]),
        )
    if text == "how many objects ?":
        whole = pixels(scene, bodies=every, evidence=every)
        return str(len(names)), whole, whole
    if found := re.fullmatch(r"how many (.+) \?", text):
        name = dict(zip(PLURALS, NAMES, strict=True))[found[1]]
        shown = [name] if name in names else [TWIN[name]]
        return (
            str(names.count(name)),
            pixels(scene, evidence=shown),
            pixels(scene, evidence=[name, TWIN[name]]),
        )
    if found := re.fullmatch(r"what colour is the (.+) \?", text):
        name = found[1]
        assert names.count(name) == 1
        colour = scene.colours[names.index(name)]
        return colour, pixels(scene, bodies=[name]), pixels(scene, bodies=[name], evidence=[name])
    if found := re.fullmatch(r"what is on the (left|right) \?", text):
        order = sorted(range(len(names)), key=lambda i: middles[i], reverse=found[1] == "right")
        first, second = order[:2]
        assert abs(middles[first] - middles[second]) >= GAP * 128
        alone = {(y, x) for y, x in scene.evidence[first].nonzero().tolist()}
        return names[first], alone, pixels(scene, bodies=every, evidence=every)
    found = re.fullmatch(r"is the (.+) left or right of the (.+) \?", text)
    assert found is not None
    this, that = found.groups()
    assert names.count(this) == names.count(that) == 1
    gap = middles[names.index(this)] - middles[names.index(that)]
    assert abs(gap) >= GAP * 128
    pair = [this, that]
    return "left" if gap < 0 else "right", pixels(scene, evidence=pair), pixels(scene, bodies=pair, evidence=pair)


def test_answers_and_masks_are_what_a_slow_reader_finds(drawn):
    kinds = Counter[str]()
    for scene, questions in drawn[:24]:
        for question in questions:
            answer, single, union = expected(scene, question.text)
            assert question.answer == answer
            assert places(question.single) == single
            assert places(question.union) == union
            assert (question.single is None) == (not single)
            kinds[question.kind] += 1
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 8


def test_every_question_is_one_of_the_closed_list_and_so_is_its_answer(drawn):
    for _, questions in drawn:
        for question in questions:
            assert question.text in KINDS[question.kind]
            assert question.answer in ANSWERS
            assert [WORDS[i - 1] for i in tokens(question.text).tolist() if i] == question.text.split()
            assert tokens(question.text).shape == (LONGEST,)


def test_no_answer_can_be_known_without_the_picture(drawn):
    """Of a question's text alone the answer is a guess: the most frequent answer of a kind is right in few cases."""
    answers = {kind: Counter[str]() for kind in KINDS}
    for _, questions in drawn:
        for question in questions:
            answers[question.kind][question.answer] += 1
    share = {kind: max(count.values()) / count.total() for kind, count in answers.items()}
    assert share["exist"] < 0.62
    assert share["relation"] < 0.65
    assert share["count"] < 0.6
    assert share["objects"] < 0.45
    assert share["colour"] < 0.4
    assert share["side"] < 0.3


def test_half_of_what_is_absent_has_its_twin_in_the_picture():
    twins = []
    for scene, questions in Questions(120, seed=9, kinds=["exist"]):
        present = {CLASSES[label].replace("_", " ") for label in scene.labels.tolist()}
        name = questions[0].text.removeprefix("is there a ").removesuffix(" ?")
        if questions[0].answer == "no":
            twins.append(TWIN[name] in present)
    assert 0.35 < sum(twins) / len(twins) < 0.65


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("How many police_cars?", "how many police cars ?"),
        ("  is there a CAT ?", "is there a cat ?"),
        ("what color is the taxi", "what colour is the taxi ?"),
    ],
)
def test_questions_are_read_as_people_write_them(text, question):
    assert normalised(text) == question


@pytest.mark.parametrize(
    "text", ["", "is there a dog ?", "how many cat ?", "is the cat left or right of the cat ?", "why"]
)
def test_other_questions_are_refused_with_what_is_on_offer(text):
    with pytest.raises(KonkyoError, match=r"no question about drawn scenes.*is there a cat \?.*windmill"):
        normalised(text)


def test_samples_hold_the_question_its_answer_and_both_masks():
    data = samples("questions:12", seed=4)
    drawn = Questions(12, seed=UNSEEN + 4)
    kinds = list(ANSWERED)
    for index, (sample, (scene, questions)) in enumerate(zip(data, drawn, strict=True)):
        question = next(q for q in questions if q.text == sample.question)
        (thing,) = sample.annotations
        assert sample.label == thing.label == question.answer
        assert sample.image.tobytes() == scene.image.tobytes()
        assert places(thing.mask) == places(question.union)
        assert places(thing.evidence) == places(question.single)
        if kinds[index % 5] in {q.kind for q in questions}:
            assert question.kind == kinds[index % 5]
    assert data[3].question == samples("questions:12", seed=4)[3].question
    only = samples("questions:8,kinds=relation")  # scenes that do not allow one are left out
    assert all(s.question in KINDS["relation"] for s in only)
    only = samples("questions:6,kinds=exist+count")
    assert {kind for s in only for kind in KINDS if s.question in KINDS[kind]} == {"exist", "count"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("questions:ten", "expected questions:200"),
        ("questions:5,kinds=why", "unknown kind of question 'why'.*exist, count"),
        ("questions:5,objects=3", "unknown option of questions 'objects'.*kinds, size"),
    ],
)
def test_samples_refuse_what_is_not_on_offer(source, message):
    with pytest.raises(KonkyoError, match=message):
        samples(source)


def test_a_scene_with_questions_depends_on_seed_and_index_alone():
    torch.manual_seed(0)
    first, longer = Questions(5, seed=4)[2], Questions(50, seed=4)[2]
    assert first[0].image.tobytes() == longer[0].image.tobytes()
    assert [q.text for q in first[1]] == [q.text for q in longer[1]]
    assert Questions(5, seed=4)[-3][1][0].text == first[1][0].text
    with pytest.raises(IndexError):
        Questions(5, seed=4)[5]
    with pytest.raises(KonkyoError, match="kinds: expected a list"):
        Questions(5, kinds="exist")

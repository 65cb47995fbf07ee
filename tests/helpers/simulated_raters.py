"""Forms without pictures, and raters of known preferences who answer them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from konkyo.survey.form import Answer, Form, Item, Word


def form_of(methods: Sequence[str], plain: int, repeats: int = 0, attention: int = 0) -> Form:
    """A form of so many items; attention items ask for the first method, against a blank map."""
    pictures = {name: f"{place}.webp" for place, name in enumerate(methods)}
    items = [Item(f"i{n:02d}", "plain", f"image {n:02d}.jpg", "", "cat", "o.webp", pictures) for n in range(plain)]
    for n in range(repeats):
        items.append(Item(f"r{n:02d}", "repeat", f"image {n:02d}.jpg", "", "cat", "o.webp", pictures, of=f"i{n:02d}"))
    checks = {methods[0]: "0.webp", "(blank)": "blank.webp"}
    for n in range(attention):
        items.append(Item(f"a{n:02d}", "attention", "dog.jpg", "", "dog", "o.webp", checks, expected=methods[0]))
    texts = {"en": {"title": "Maps", "question": "Which is better?", "consent": "I agree."}}
    files = dict.fromkeys(["o.webp", "blank.webp", *pictures.values()], "0" * 64)
    return Form(texts, tuple(methods), tuple(items), 0, digests=files)


def answer(rater: str, item: str, left: str, right: str, word: Word, **changes: object) -> Answer:
    """One answer, given after 4 seconds."""
    values = {"ms": 4000, "timestamp": "2026-01-31T09:30:00Z", "form_hash": "f" * 64, "position": 0} | changes
    return Answer(rater, item, left, right, word, **values)  # type: ignore[arg-type]


def table_of(votes: Sequence[Sequence[str]], methods: tuple[str, str] = ("ours", "theirs")) -> list[Answer]:
    """Answers of a table with a row per rater and a word per item: ours, theirs, tie, cannot_judge, or "" of none."""
    answers = []
    for r, row in enumerate(votes):
        for i, choice in enumerate(row):
            left, right = methods if (r + i) % 2 == 0 else methods[::-1]
            word = {left: "left", right: "right"}.get(choice, choice)
            if word:
                answers.append(answer(f"R{r}", f"i{i:02d}", left, right, word))  # type: ignore[arg-type]
    return answers


def answers_of(
    form: Form,
    raters: int,
    logs: Sequence[float],
    generator: np.random.Generator,
    *,
    deviations: tuple[float, float] = (0.5, 1.0),
    ties: float = 0.1,
    careless: Collection[int] = (),
) -> list[Answer]:
    """Answers to random pairs, by Bradley and Terry with effects of raters and items; the careless say left."""
    kinds = len(form.methods)
    of_rater = deviations[0] * generator.standard_normal((raters, kinds)) / math.sqrt(2)
    of_item = {item.id: deviations[1] * generator.standard_normal(kinds) / math.sqrt(2) for item in form.plain_items}
    answers, digest = [], form.form_hash
    for r in range(raters):
        shown: dict[str, list[str]] = {}
        for position, item in enumerate(form.items, 1):
            word: Word = "left"
            if item.kind == "attention":
                names = list(generator.permutation(list(item.pictures)))
                word = "left" if names[0] == item.expected else "right"
            else:
                source = item.of or item.id
                pair = [form.methods[k] for k in generator.choice(kinds, 2, replace=False)]
                names = shown[source][::-1] if item.of else shown.setdefault(source, pair)
                i, j = (form.methods.index(name) for name in names)
                effects = np.asarray(logs) + of_rater[r] + of_item[source]
                if generator.random() < ties:
                    word = "tie"
                else:
                    word = "left" if generator.random() < 1 / (1 + math.exp(effects[j] - effects[i])) else "right"
            word = "left" if r in careless else word
            changes = {"form_hash": digest, "position": position}
            answers.append(answer(f"RATER{r:03d}", item.id, str(names[0]), str(names[1]), word, **changes))
    return answers

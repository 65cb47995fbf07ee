"""The order of a rater: which item comes when, which two methods it shows, and on which side each stands."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations

from konkyo.survey.form import Form, Item

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""The characters of codes: without I, L, O and U, which are mistaken for others."""
ORDERS = tuple(first + second for first in ALPHABET for second in ALPHABET)
"""The first two characters of a rater's code decide the order, so an offline page can hold all 1,024."""


@dataclass(frozen=True)
class Showing:
    """A showing is an item with its two sides, by the names of the methods."""

    item: Item
    left: str
    right: str


def order_of(form: Form, rater: str) -> tuple[Showing, ...]:
    """Returns what a rater is shown, in order: the same for the same form and code.

    Every pair of methods comes equally often (differing by one at most), and either method of a pair stands equally
    often on the left. Items come in random order. A repeat has the pair of its item with the sides swapped, and is
    about a third of the form away from it or more, before or after.
    """
    draw = random.Random(f"{form.seed}:{rater[:2]}")
    sides = _sides(form, draw)
    once = [item for item in form.items if item.kind != "repeat"]
    draw.shuffle(once)
    items = once
    for repeat in (item for item in form.items if item.kind == "repeat"):
        at = next(index for index, item in enumerate(items) if item.id == repeat.of)
        far = [place for place in range(len(items) + 1) if abs(place - at) > len(items) // 3] or [len(items)]
        items.insert(draw.choice(far), repeat)
    return tuple(Showing(item, *_shown(item, sides)) for item in items)


def _shown(item: Item, sides: dict[str, tuple[str, str]]) -> tuple[str, str]:
    return sides[item.id] if item.of is None else (sides[item.of][1], sides[item.of][0])


def _sides(form: Form, draw: random.Random) -> dict[str, tuple[str, str]]:
    """Returns (left, right) of every item that is no repeat."""
    pairs = list(combinations(form.methods, 2))
    draw.shuffle(pairs)
    turned = [draw.random() < 0.5 for _ in pairs]
    dealt = list(form.plain_items)
    draw.shuffle(dealt)
    sides = {}
    for number, item in enumerate(dealt):
        which = number % len(pairs)
        first, second = pairs[which]
        sides[item.id] = (second, first) if turned[which] ^ (number // len(pairs) % 2 == 1) else (first, second)
    for item in form.items:
        if item.kind == "attention":
            first, second = draw.sample(sorted(item.pictures), 2)
            sides[item.id] = (first, second)
    return sides

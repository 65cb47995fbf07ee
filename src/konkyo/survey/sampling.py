"""Which images become items: drawn by a rule and a seed, never picked by hand."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from konkyo.errors import KonkyoError, unknown
from konkyo.survey.sources import Key, MapRow, Source

RULES = ("random", "true_label", "decision", "correct")
"""Simple random; or stratified by one of the others, as many of each as there can be."""
ONE_SIDED = "not explained by all that are compared"
OTHER_TARGET = "another target of an image that is in already"
NO_STRATUM = "of an unknown stratum"
NO_PICTURE = "its picture cannot be found, or is another now"
OTHER_VIEW = "the models see different parts of the picture"


@dataclass(frozen=True)
class Candidate:
    """A candidate is an image and target that all methods explain."""

    key: Key
    rows: Mapping[str, MapRow]
    """Its map by every method, by the method's name in the survey."""
    stratum: str = ""

    @property
    def first(self) -> MapRow:
        """Returns the row of the first method."""
        return next(iter(self.rows.values()))


@dataclass(eq=False)
class Population:
    """The population is all candidates, in random order, and what was left out and why."""

    methods: tuple[str, ...]
    sources: Mapping[str, Source]
    """The source of every method."""
    candidates: list[Candidate]
    left_out: Counter[str] = field(default_factory=Counter)

    def drawn(self) -> Iterator[Candidate]:
        """Yields the candidates in the order in which they are taken: of the strata in turn."""
        strata: dict[str, list[Candidate]] = defaultdict(list)
        for candidate in self.candidates:
            strata[candidate.stratum].append(candidate)
        queues = [iter(listed) for _, listed in sorted(strata.items())]
        while queues:
            for queue in list(queues):
                following = next(queue, None)
                if following is None:
                    queues.remove(queue)
                else:
                    yield following


def population(sources: Sequence[Source], methods: Sequence[str], rule: str, seed: int) -> Population:
    """Returns what can be drawn. `methods`: of the sources, these alone; all.

    KonkyoError: fewer than two things to compare, an unknown method or rule, or nothing that all explain.
    """
    if rule not in RULES:
        raise unknown("sampling rule", rule, RULES)
    rows: dict[tuple[int, str], dict[Key, MapRow]] = defaultdict(dict)
    there = set[str]()
    for number, source in enumerate(sources):
        for row in source.rows():
            there.add(row.method)
            if not methods or row.method in methods:
                rows[number, row.method].setdefault(row.key, row)
    for method in methods:
        if method not in there:
            raise unknown("method", method, sorted(there))
    names = _names(sources, list(rows))
    common = set.intersection(*(set(of_method) for of_method in rows.values()))
    left_out = Counter({ONE_SIDED: len(set.union(*(set(of_method) for of_method in rows.values())) - common)})
    draw = random.Random(f"{seed}:sample")
    by_image: dict[str, list[Key]] = defaultdict(list)
    for key in sorted(common):
        by_image[key[0]].append(key)
    images, candidates = list(by_image), list[Candidate]()
    draw.shuffle(images)  # images first, and then a target of each: those with many targets come no more often
    for image in images:
        known = []
        for key in by_image[image]:
            candidate = Candidate(key, {names[column]: rows[column][key] for column in rows})
            stratum = "" if rule == "random" else candidate.first.strata.get(rule)
            if stratum is None:
                left_out[NO_STRATUM] += 1
            else:
                known.append(Candidate(key, candidate.rows, stratum))
        if known:
            candidates.append(draw.choice(known))
            left_out[OTHER_TARGET] += len(known) - 1
    if not candidates:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        raise KonkyoError(
            f"no image and target is explained by all of {', '.join(names.values())} ({reasons or 'no maps'}). "
            "Explain the same images with one target for all, as with --class or the true label"
        )
    return Population(tuple(names.values()), {names[c]: sources[c[0]] for c in rows}, candidates, left_out)


def _names(sources: Sequence[Source], columns: Sequence[tuple[int, str]]) -> dict[Any, str]:
    """Returns what the two things or more that are compared are called. KonkyoError: fewer."""
    there = {method for _, method in columns}
    if len(columns) < 2:
        raise KonkyoError(f"a survey compares two methods or models at least; there is {', '.join(there) or 'none'}")
    names = {}
    for number, method in columns:
        source = sources[number].name
        alone = sum(n == number for n, _ in columns) == 1 and len(sources) > 1
        names[number, method] = source if alone and source else method if len(sources) == 1 else f"{source}: {method}"
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise KonkyoError(f"two of what is compared are called {twice[0]}; give them names, as in --from NAME=FOLDER")
    for name in names.values():
        if not name.isprintable() or name[0] in "=+-@'(" or len(name) > 80:
            raise KonkyoError(f"{name!r} is no name of a method in a table; give one, as in --from NAME=FOLDER")
    return names

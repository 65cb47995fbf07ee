"""analyse(): from answers to preferences with intervals, strengths, agreement and the quality of raters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konkyo.errors import KonkyoError, unknown
from konkyo.survey.agreement import Agreement
from konkyo.survey.form import Answer, Form, Item, read_answers
from konkyo.survey.preference import TIES, Preference, SignTest
from konkyo.survey.quality import RaterQuality, Repeats, Sides, is_plain, qualities, rule_of
from konkyo.survey.strengths import Strengths
from konkyo.survey.votes import Votes
from konkyo.utils.files import csv_of, plain, write_text

if TYPE_CHECKING:
    from PIL import Image

    from konkyo.evaluation.result import FigureFormat


@dataclass(frozen=True)
class ItemVotes:
    """The votes on one item between two methods, of the raters that are kept."""

    item: str
    image: str
    first: str
    second: str
    for_first: int
    ties: int
    for_second: int
    p: float
    """Two-sided, of the votes without ties, exactly; for this item alone, and not adjusted for the number of items."""


@dataclass(frozen=True)
class Analysis:
    """What a survey has shown. `remarks` and `paragraph` say it in words, `save` writes all of it."""

    methods: tuple[str, ...]
    """The first of two is the one whose rate is reported."""
    raters: int
    items: int
    """Plain items with an answer."""
    answers: int
    """All of them, those to repeats and attention items included."""
    cannot_judge: float
    """The share of such answers among those to plain items."""
    preferences: tuple[Preference, ...]
    """For every pair of methods: of all raters and of those kept, with ties dropped and counted half."""
    by_item: tuple[ItemVotes, ...]
    strengths: Strengths | None
    """By Bradley and Terry, of the raters kept; None of two methods, or without votes."""
    agreement: tuple[Agreement, ...]
    """Of the raters kept, for every pair of methods."""
    sides: Sides
    repeats: Repeats
    quality: tuple[RaterQuality, ...]
    rule: str
    """The rule of exclusion."""
    has_form: bool
    """Without the form, repeats and attention items are not known, and all items count as plain."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def excluded(self) -> tuple[RaterQuality, ...]:
        """Returns the raters that the rule leaves out."""
        return tuple(quality for quality in self.quality if quality.excluded)

    def preference(self, first: str, second: str, raters: str = "kept", ties: str = "dropped") -> Preference | None:
        """Returns one of `preferences`; None where there are no such votes."""
        wanted = (first, second, raters, ties)
        return next((p for p in self.preferences if (p.first, p.second, p.raters, p.ties) == wanted), None)

    @property
    def main(self) -> Preference | None:
        """Returns the preference that is reported of two methods: raters kept, ties dropped; None without votes."""
        return self.preference(*self.methods) if len(self.methods) == 2 else None

    def remarks(self, lang: str = "en") -> list[str]:
        """Returns the sentences that a reader of the numbers has to know, in "en" or "ja"."""
        from konkyo.survey.sentences import remarks

        return remarks(self, lang)

    def paragraph(self, lang: str = "en") -> str:
        """Returns a paragraph for a paper, in "en" or "ja"."""
        from konkyo.survey.sentences import paragraph

        return paragraph(self, lang)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the rows of every table by its name."""
        strengths = self.strengths
        tables = {
            "items": [asdict(row) for row in self.by_item],
            "preference": [_flat(row) for row in self.preferences],
            "agreement": [asdict(row) for row in self.agreement],
            "raters": [asdict(row) for row in self.quality],
            "strengths": [asdict(row) for row in strengths.methods] if strengths else [],
            "pairs": [asdict(row) for row in strengths.pairs] if strengths else [],
        }
        return {name: rows for name, rows in tables.items() if rows}

    def description(self) -> dict[str, Any]:
        """Returns everything as plain JSON values."""
        values = asdict(self)
        values |= {"settings": dict(self.settings), "excluded": [q.rater for q in self.excluded]}
        values |= {"remarks": {lang: self.remarks(lang) for lang in ("en", "ja")}}
        return plain(_listed(values))  # type: ignore[no-any-return]

    def figures(self) -> dict[str, Image.Image]:
        """Draws the pictures by file name: votes by item, preferences, strengths; none without votes."""
        from konkyo.survey.figures import figures  # pictures are drawn only when a user wants them

        return figures(self)

    def save(self, folder: str | Path, *, lang: str = "en", format: FigureFormat = "png") -> Path:
        """Writes tables (csv), figures, paragraph.md and result.json into the folder. -> the folder"""
        from konkyo.draw.sheets import save_image

        folder = Path(folder)
        for name, picture in self.figures().items():
            save_image(picture, (folder / name).with_suffix(f".{format}"))
        for name, rows in self.tables().items():
            write_text(folder / f"{name}.csv", csv_of(rows))
        lines = [self.paragraph(lang), "", *(f"- {line}" for line in self.remarks(lang))]
        write_text(folder / "paragraph.md", "\n".join(lines) + "\n")
        write_text(folder / "result.json", json.dumps(self.description(), indent=1, ensure_ascii=False) + "\n")
        return folder


def analyse(
    answers: Iterable[Answer],
    form: Form | None = None,
    *,
    method: str | None = None,
    rule: str = "standard",
    resamples: int = 1000,
    seed: int = 0,
) -> Analysis:
    """Returns what answers show. `form`: what was asked; without it, all items count as plain.

    `method`: the one whose rate is reported; by default the first of the form's (in the order of the alphabet). `rule`:
    one of RULES, who is left out. `resamples`: of raters and items, for the bootstrap intervals; 0: none.
    KonkyoError: no answers, answers to another form or to several, names that are not on offer, or a rater who answers
    an item twice.
    """
    listed = list(answers)
    _require_once(listed)
    _require_one_form(listed, form)
    items = {item.id: item for item in form.items} if form else {}
    judged = [answer for answer in listed if is_plain(answer, items)]
    if not judged:
        raise KonkyoError(f"an analysis needs answers to plain items; there are {len(listed)} answers, none of them is")
    methods = _methods(judged, form, method)
    quality = qualities(listed, items, rule_of(rule))
    out = {q.rater for q in quality if q.excluded}
    kept = [answer for answer in judged if answer.rater not in out]
    votes = {"all": Votes.of(judged, methods), "kept": Votes.of(kept, methods)}
    pairs = [(i, j) for i in range(len(methods)) for j in range(i + 1, len(methods))]
    preferences = [
        Preference.of(of_pair, raters=whose, ties=ties, resamples=resamples, seed=seed)
        for i, j in pairs
        for whose, cast in votes.items()
        if len(of_pair := cast.of_pair(i, j))
        for ties in TIES
    ]
    known = votes["kept"]
    several = len(methods) > 2 and len(known) > 0
    return Analysis(
        methods=methods,
        raters=len({a.rater for a in judged}),
        items=len({a.item for a in judged}),
        answers=len(listed),
        cannot_judge=sum(a.answer == "cannot_judge" for a in judged) / len(judged),
        preferences=tuple(preferences),
        by_item=_by_item(known, items),
        strengths=Strengths.of(known, resamples=resamples, seed=seed) if several else None,
        agreement=tuple(Agreement.of(known.of_pair(i, j)) for i, j in known.pairs()),
        sides=Sides.of([a for a in listed if a.rater not in out], items),
        repeats=Repeats.of([a for a in listed if a.rater not in out], items),
        quality=quality,
        rule=rule,
        has_form=form is not None,
        settings={
            "resamples": resamples,
            "seed": seed,
            "forms": sorted({a.form_hash for a in listed}),
            "sampling": dict(form.sampling) if form else {},
        },
    )


def read(sources: Sequence[str | Path], form: Form | None = None) -> list[Answer]:
    """Returns the answers of one or more tables (csv). An answer that stands in several of them counts once.

    KonkyoError: a file is no such table, or two of them disagree on what a rater answered.
    """
    merged: dict[tuple[str, str], Answer] = {}
    for source in sources:
        for answer in read_answers(source, form):
            if merged.setdefault((answer.rater, answer.item), answer) != answer:
                raise KonkyoError(f"{source}: rater {answer.rater} answers item {answer.item} otherwise than before")
    return list(merged.values())


def _methods(answers: Sequence[Answer], form: Form | None, first: str | None) -> tuple[str, ...]:
    """Returns the names of the methods, `first` before the others."""
    there = {name for a in answers for name in (a.method_left, a.method_right)}
    methods = form.methods if form else tuple(sorted(there))
    if strange := sorted(there - set(methods)):
        raise unknown("method in the answers", strange[0], methods)
    if first is not None and first not in methods:
        raise unknown("method", first, methods)
    return methods if first is None else (first, *(name for name in methods if name != first))


def _require_once(answers: Sequence[Answer]) -> None:
    seen: set[tuple[str, str]] = set()
    for answer in answers:
        if (key := (answer.rater, answer.item)) in seen:
            raise KonkyoError(f"rater {answer.rater} answers item {answer.item} more than once")
        seen.add(key)


def _require_one_form(answers: Sequence[Answer], form: Form | None) -> None:
    hashes = {a.form_hash for a in answers}
    if form is not None and (others := hashes - {form.form_hash}):
        raise KonkyoError(f"answers are of another form ({min(others)[:12]}..., not {form.form_hash[:12]}...)")
    if len(hashes) > 1:
        raise KonkyoError(f"the answers are of {len(hashes)} forms; analyse those of each form for themselves")


def _by_item(votes: Votes, items: Mapping[str, Item]) -> tuple[ItemVotes, ...]:
    """Returns the votes of every item and pair, in the order of the form."""
    order = {name: place for place, name in enumerate(items)}
    rows = []
    for i, j in votes.pairs():
        of_pair = votes.of_pair(i, j)
        for name, (first, ties, second) in zip(of_pair.items, of_pair.by_item().tolist(), strict=True):
            image = items[name].image if name in items else name
            p = SignTest.of(first, second).p
            rows.append(ItemVotes(name, image, votes.methods[i], votes.methods[j], first, ties, second, p))
    return tuple(sorted(rows, key=lambda row: (order.get(row.item, math.inf), row.item)))


def _flat(preference: Preference) -> dict[str, Any]:
    """Returns a preference as one line of a table."""
    values = asdict(preference)
    test = values.pop("items")
    return values | {f"items_{name}": value for name, value in test.items()}


def _listed(value: Any) -> Any:
    """Returns dicts and lists, without tuples."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value

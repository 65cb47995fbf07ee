"""build(): a form is made of maps; its items are drawn by a rule and a seed, and its pictures by one rule for all."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

from konkyo.errors import KonkyoError, unknown, warn
from konkyo.explanation.result import Explanation
from konkyo.runs.pictures import DataNow
from konkyo.survey.drawing import Drawing, same_view, shuffled, webp
from konkyo.survey.form import FEW, Form, Item, Kind
from konkyo.survey.sampling import NO_PICTURE, OTHER_VIEW, Candidate, Population, population
from konkyo.survey.sources import MapRow, Source, source_of
from konkyo.survey.words import texts_of
from konkyo.utils.files import replacing, whole_folder
from konkyo.utils.progress import StageProgress

Maps: TypeAlias = str | Path | Explanation | Sequence[Explanation]
Attention: TypeAlias = Literal["instruction", "shuffled", "blank"]
_KINDS = ("instruction", "shuffled", "blank")
MOST_METHODS = 10
_BATCH = 16  # candidates whose maps are read together


@dataclass(frozen=True)
class Plan:
    """A plan says how many items a form has, and how they are drawn."""

    items: int = 30
    rule: str = "random"
    """"random", or strata: "true_label", "decision" or "correct"."""
    repeats: int = 3
    """So many items come again with their sides swapped."""
    attention: int = 2
    attention_kind: Attention = "instruction"
    """What an attention item is: an answer that is asked for, or a map against its shuffled self or no map at all."""
    seed: int = 0
    methods: tuple[str, ...] = ()
    """Of the sources, these methods alone."""
    drawing: Drawing = field(default_factory=Drawing)
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """"title", "question" and "consent" by language, where they are not the usual ones."""

    def __post_init__(self) -> None:
        if self.attention_kind not in _KINDS:
            raise unknown("kind of attention item", self.attention_kind, _KINDS)
        if not 1 <= self.items <= 1000 or not 0 <= self.repeats <= self.items or not 0 <= self.attention <= 100:
            raise KonkyoError(
                f"a form has 1 to 1000 items, no more repeats than items, and up to 100 attention items; "
                f"got {self.items}, {self.repeats} and {self.attention}"
            )


def build(
    sources: Mapping[str, Maps] | Sequence[str | Path],
    out: str | Path,
    plan: Plan | None = None,
    data: DataNow = None,
    *,
    progress: StageProgress | None = None,
) -> Form:
    """Makes the form of a survey in the new folder `out`, the same bytes for the same maps and plan. -> the form

    `sources`: folders of `konkyo run` or `konkyo explain`, or explanations with their pictures, by name. What is
    compared are the sources' methods: several of one source, or one of each. `data`: where a run's pictures are now.
    `progress` hears of every image that is chosen and every item that is drawn. A KonkyoWarning tells of fewer than 24
    items. KonkyoError: nothing can be compared, or `out` is there already.
    """
    plan, target = plan or Plan(), Path(out)
    opened = [source_of(given, name, data) for name, given in _by_name(sources).items()]
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise KonkyoError(f"{target} is there already; build the form in a new folder")
    candidates = population(opened, plan.methods, plan.rule, plan.seed)
    if len(candidates.methods) > MOST_METHODS:
        raise KonkyoError(
            f"a survey compares {MOST_METHODS} methods at most; there are {', '.join(candidates.methods)}"
        )
    tell = progress or _nobody
    possible = len(candidates.candidates)
    chosen, spare = _chosen(candidates, plan, tell)
    items, files = _drawn_items(chosen, spare, plan, tell)
    form = Form(
        texts=texts_of(plan.texts),
        methods=candidates.methods,
        items=items,
        seed=plan.seed,
        sampling=_sampling(plan, possible, chosen, candidates.left_out),
        drawing=asdict(plan.drawing),
        sources=tuple({"method": name, **source.description} for name, source in candidates.sources.items()),
        digests={name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)},
    )
    _write(form, files, target)
    if len(chosen) < FEW:
        warn(
            f"the form has {len(chosen)} items; with fewer than {FEW} even a clear preference is hard to show "
            f"(11 of 15 items has p = 0.118). `konkyo survey analyse` says what can be shown"
        )
    return form


def _nobody(_done: int, _total: int, _stage: str) -> None:
    """Hears how far it is where nobody asked."""


def _by_name(sources: Mapping[str, Maps] | Sequence[str | Path]) -> dict[str, Maps]:
    """Returns the sources by name, folders by their own. KonkyoError: two of one name."""
    named: dict[str, Maps] = {}
    named |= sources if isinstance(sources, Mapping) else {Path(folder).name: folder for folder in sources}
    if len(named) < len(sources):
        raise KonkyoError(f"two of the folders have one name: {', '.join(map(str, sources))}; give them names")
    return named


@dataclass(frozen=True)
class Shown:
    """A candidate with its maps, a row by every method, all over the same view."""

    candidate: Candidate
    results: Mapping[str, Explanation]


@dataclass(frozen=True)
class _Blank:
    """An item before it is drawn."""

    shown: Shown
    kind: Kind = "plain"
    expected: str | None = None


def _chosen(candidates: Population, plan: Plan, tell: StageProgress) -> tuple[list[Shown], list[Shown]]:
    """Returns what the items show, and what the attention items do. KonkyoError: nothing can be shown."""
    chosen: list[Shown] = []
    spare: list[Shown] = []
    most = min(plan.items + plan.attention, len(candidates.candidates))
    for done, shown in enumerate(islice(_shown(candidates), most), 1):
        (chosen if len(chosen) < plan.items else spare).append(shown)
        tell(done, most, "reading maps")
    if not chosen:
        reasons = ", ".join(f"{count} {reason}" for reason, count in candidates.left_out.items() if count)
        raise KonkyoError(f"no picture of {len(candidates.candidates)} images can be shown: {reasons}")
    return chosen, spare or chosen


def _shown(population: Population) -> Iterator[Shown]:
    """Yields the candidates that can be shown, in the order in which they are drawn; notes why others cannot."""
    candidates = iter(population.drawn())
    while batch := list(islice(candidates, _BATCH)):
        results = _results(population, batch)
        for candidate in batch:
            by_method = {name: results[name, candidate.rows[name].key] for name in population.methods}
            reason = _unshown(list(by_method.values()))
            if reason:
                population.left_out[reason] += 1
            else:
                yield Shown(candidate, by_method)


def _results(population: Population, batch: Sequence[Candidate]) -> dict[tuple[str, Any], Explanation]:
    """Returns the maps of some candidates by (method, key); a source with several methods is read once."""
    results: dict[tuple[str, Any], Explanation] = {}
    by_source: dict[int, tuple[Source, dict[MapRow, str]]] = {}
    for name, source in population.sources.items():
        _, rows = by_source.setdefault(id(source), (source, {}))
        rows.update({candidate.rows[name]: name for candidate in batch})
    for source, rows in by_source.values():
        for row, result in source.results(list(rows)):
            results[rows[row], row.key] = result
    return results


def _unshown(results: Sequence[Explanation]) -> str:
    """Returns why maps cannot be shown side by side; "" where they can."""
    if any(result.images is None for result in results):
        return NO_PICTURE
    views = [result.picture(0) for result in results]
    return "" if all(same_view(views[0], view) for view in views[1:]) else OTHER_VIEW


def _drawn_items(
    chosen: Sequence[Shown], spare: Sequence[Shown], plan: Plan, tell: StageProgress
) -> tuple[tuple[Item, ...], dict[str, bytes]]:
    """Returns the items in the order of the form, and the pictures by the names of their files."""
    blanks = _blanks(chosen, spare, plan)
    names = {id(blank.shown): f"{at:03d}" for at, blank in enumerate(blanks, 1) if blank.kind == "plain"}
    items: list[Item] = []
    files: dict[str, bytes] = {}
    for at, blank in enumerate(blanks, 1):
        items.append(_item(f"{at:03d}", blank, names, plan, files))
        tell(at, len(blanks), "drawing items")
    return tuple(items), files


def _blanks(chosen: Sequence[Shown], spare: Sequence[Shown], plan: Plan) -> list[_Blank]:
    """Returns the items in random order, so that their numbers do not tell what they are for."""
    draw = random.Random(f"{plan.seed}:items")
    blanks = [_Blank(shown) for shown in chosen]
    again = draw.sample(range(len(chosen)), min(plan.repeats, len(chosen)))
    blanks += [_Blank(chosen[at], "repeat") for at in again]
    for number in range(plan.attention):
        shown = spare[number % len(spare)]
        word = ("left", "right", "tie")[draw.randrange(3)]
        expected = word if plan.attention_kind == "instruction" else draw.choice(sorted(shown.results))
        blanks.append(_Blank(shown, "attention", expected=expected))
    draw.shuffle(blanks)
    return blanks


def _item(name: str, blank: _Blank, names: Mapping[int, str], plan: Plan, files: dict[str, bytes]) -> Item:
    """Draws the pictures of an item into `files`. `names`: of the plain items, by what they show. -> the item"""
    shown, first = blank.shown, blank.shown.candidate.first
    is_attention = blank.kind == "attention"
    pictures = _pictures(blank, plan)
    shared = name if is_attention else names[id(shown)]  # a repeat has the files of its item

    def stored(method: str, data: bytes) -> str:
        file = hashlib.sha256(f"{plan.seed}:{shared}:{method}:".encode() + data).hexdigest()[:20] + ".webp"
        files[file] = data
        return file

    original = stored("", webp(plan.drawing.plain(next(iter(shown.results.values())))))
    return Item(
        id=name,
        kind=blank.kind,
        image=first.image,
        sha256=first.sha256,
        target=first.target,
        original=original,
        pictures={method: stored(method, webp(picture)) for method, picture in pictures.items()},
        stratum=shown.candidate.stratum,
        of=names[id(shown)] if blank.kind == "repeat" else None,
        expected=blank.expected,
    )


def _pictures(blank: _Blank, plan: Plan) -> dict[str, Image.Image]:
    """Draws the pictures of an item, by what they are of."""
    drawing, results = plan.drawing, blank.shown.results
    if blank.kind != "attention" or plan.attention_kind == "instruction":
        return drawing.drawn(results)
    assert blank.expected is not None
    result = results[blank.expected]
    decoy = drawing.plain(result)
    if plan.attention_kind == "shuffled":
        (decoy,) = drawing.drawn({"": shuffled(result, random.Random(f"{plan.seed}:shuffled"))}).values()
    return {**drawing.drawn({blank.expected: result}), f"({plan.attention_kind})": decoy}


def _sampling(plan: Plan, possible: int, chosen: Sequence[Shown], left_out: Counter[str]) -> dict[str, Any]:
    return {
        "rule": "simple random" if plan.rule == "random" else f"stratified by {plan.rule}, equally many of each",
        "seed": plan.seed,
        "possible": possible,
        "drawn": len(chosen),
        "strata": dict(sorted(Counter(s.candidate.stratum for s in chosen).items())) if plan.rule != "random" else {},
        "left_out": {reason: count for reason, count in sorted(left_out.items()) if count},
        "doubtful_maps": {
            name: sum(bool(s.results[name].diagnosis) and s.results[name].diagnosis[0].kind != "ok" for s in chosen)
            for name in chosen[0].results
        },
    }


def _write(form: Form, files: Mapping[str, bytes], target: Path) -> None:
    """Writes the folder under another name until it is whole."""
    with whole_folder(target, "building") as under_way:
        for name, data in sorted(files.items()):  # times and places of files do not tell the methods, either
            with replacing(under_way / name) as temporary:
                temporary.write_bytes(data)
        form.save(under_way)

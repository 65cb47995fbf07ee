"""What the commands show of explanations: scores in words, boxes, rows of contact sheets."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konkyo.apps.cli.manifest import Manifest
from konkyo.apps.cli.sources import Pictures
from konkyo.errors import ImageError, KonkyoError, NotApplicable
from konkyo.utils.words import note_of_image

if TYPE_CHECKING:
    from konkyo.draw.sheets import Row
    from konkyo.explanation.reading import Group, Read
    from konkyo.explanation.result import Explanation
    from konkyo.models import Model
    from konkyo.tasks.base import Task

WRITERS = 4
"""So many threads write pictures at most."""
_CHEAPEST = "edge_map"
"""The method that needs nothing of the network, and so one forward for the decision."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """An outcome is what the methods gave for one file, or why it cannot be used as an image."""

    results: dict[str, Explanation | NotApplicable] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: ImageError | None = None
    name: str = ""
    true_label: str | None = None

    def noted(self, entry: dict[str, Any]) -> dict[str, Explanation | NotApplicable]:
        """Returns the results; how the image was read, and what it really is, goes into the entry.

        ImageError: it cannot be used.
        """
        if self.error is not None:
            raise self.error
        entry["image"], entry["true_label"], entry["correct"], entry["decision"] = self._judged()
        if self.notes:
            entry["notes"] = list(self.notes)
        explained = [result for result in self.results.values() if not isinstance(result, NotApplicable)]
        noted = {note_of_image(0, note) for note in self.notes}  # images are explained one by one
        assumed = dict.fromkeys(a for result in explained for a in result.assumptions if a not in noted)
        if assumed:
            entry["assumptions"] = list(assumed)
        return self.results

    def _judged(self) -> tuple[str, str | None, bool | None, dict[str, Any] | None]:
        """Returns the image's name and true label, whether the model decided on it, and what it decided."""
        explained = [r for r in self.results.values() if not isinstance(r, NotApplicable) and len(r)]
        if not explained:
            return self.name, self.true_label, None, None
        decisions = (d for r in explained if r.boxes is None for d in r.decisions if d is not None)
        decided = next(({"label": d.label, "index": d.index, "probability": d.probability} for d in decisions), None)
        return self.name, self.true_label, self.correct, decided

    @property
    def correct(self) -> bool | None:
        """Tells whether the model decided on the true label; None where that cannot be said."""
        explained = [result for result in self.results.values() if not isinstance(result, NotApplicable)]
        return next((right for result in explained for right in result.correct if right is not None), None)


def explained(
    model: Model,
    files: Sequence[Path],
    names: list[str],
    request: Mapping[str, Any],
    source: Pictures | None = None,
    *,
    wrong_only: bool = False,
    read: Sequence[Read] | None = None,
) -> list[Outcome]:
    """Returns what `explanations` gives for every file; those whose pictures become of one size share a forward.

    `source` has their names and true labels. `wrong_only`: the decisions are looked at first, and what is not decided
    wrongly is not explained; its results are those of the method that costs nothing. `read`: the files as
    `read_files` gives them, where they were read before.
    """
    from konkyo.explanation.reading import grouped

    known = source or Pictures([], {})
    if not model.takes_pictures:
        return [_explained_input(model, file, names, request, known) for file in files]
    read = read_files(model, files, known) if read is None else read
    if wrong_only:
        decided = explained(model, files, [_CHEAPEST], {"target": request["target"]}, source, read=read)
        wrong = [k for k, outcome in enumerate(decided) if outcome.correct is False]
        again = explained(model, [files[k] for k in wrong], names, request, source, read=[read[k] for k in wrong])
        rest = dict(zip(wrong, again, strict=True))
        return [rest.get(k, outcome) for k, outcome in enumerate(decided)]
    outcomes = dict[int, Outcome]()
    for group in grouped(0, [(replace(entry, number=k), pixels) for k, (entry, pixels) in enumerate(read)]):
        outcomes |= _explained_together(model, group, names, request)
    return [outcomes[k] for k in range(len(files))]


def read_files(model: Model, files: Sequence[Path], source: Pictures) -> list[Read]:
    """Returns the files as the network takes them, each with what is known of it."""
    from konkyo.data.images import open_image
    from konkyo.data.samples import Sample, Samples
    from konkyo.explanation.reading import Extras, read_sample

    if model.preprocess is None or not model.takes_pictures:
        return []
    window = source.window

    def opened(number: int) -> Sample:
        file = files[number]
        return Sample(data.names[number], open_image(file, window), source.labels.get(file))

    unique = [f"{k} {file}" for k, file in enumerate(files)]
    data = Samples(tuple(unique), opened)
    read = [read_sample(model.preprocess, data, k, Extras(views=True)) for k in range(len(files))]
    called = [source.names.get(file, file.name) for file in files]
    return [(replace(entry, name=name), pixels) for (entry, pixels), name in zip(read, called, strict=True)]


def _explained_input(
    model: Model, file: Path, names: list[str], request: Mapping[str, Any], known: Pictures
) -> Outcome:
    """Returns what the methods give for a video, a volume or an array."""
    from konkyo.explanation.explain import explanations

    name, label = known.names.get(file, file.name), known.labels.get(file)
    try:
        with failures_of(model):
            results = explanations(model, str(file), names, true_labels=None if label is None else [label], **request)
    except ImageError as error:
        return Outcome(error=error)
    return Outcome(dict(results), name=name, true_label=label)


def _explained_together(model: Model, group: Group, names: list[str], request: Mapping[str, Any]) -> dict[int, Outcome]:
    """Returns the outcome of every image of a group by its number; where a batch fails, of each image alone."""
    from konkyo.explanation.explain import explanations
    from konkyo.explanation.reading import explained_groups, prepared_of

    if group.tensor is None:
        return {entry.number: Outcome(error=ImageError(entry.error)) for entry in group.entries}

    def explain(part: Group) -> Mapping[str, Explanation | NotApplicable]:
        with failures_of(model):
            return explanations(model, prepared_of(model, part), names, **request)

    outcomes = dict[int, Outcome]()
    for part, together in explained_groups(group, explain, ImageError):
        for index, entry in enumerate(part.entries):
            if isinstance(together, KonkyoError):
                sentence = str(together) if entry.name in str(together) else f"{entry.name}: {together}"
                outcomes[entry.number] = Outcome(error=ImageError(sentence))
                continue
            outcomes[entry.number] = Outcome(
                {n: r if isinstance(r, NotApplicable) else r.of_image(index) for n, r in together.items()},
                entry.notes,
                name=entry.name,
                true_label=entry.label,
            )
    return outcomes


@contextmanager
def failures_of(model: Model) -> Iterator[None]:
    """What a network says of input that it does not take, in a line."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise KonkyoError(f"{model.name} failed on this input: {type(error).__name__}: {reason}") from error


def facts(result: Explanation, row: int) -> dict[str, Any]:
    """What the manifest says of a target: its box in the picture's pixels, if it has one, details, and the decision."""
    from konkyo.explanation.words import box_of, target_of

    box, decision = box_of(result, row), result.decisions[row]
    place = {} if box is None else {"box": [round(side, 2) for side in box]}
    target = target_of(result, row)
    details = {} if target is None else target.details()
    return place | details | {"decision": None if decision is None else asdict(decision)}


def in_a_line(results: Mapping[str, Explanation | NotApplicable]) -> str:
    """What is explained of an image, and what the model decided: "asked: dog (...), asked: fox (...); decided: cat"."""
    from konkyo.explanation.words import decided_in_words, score_in_words, truth_in_words

    done = [result for result in results.values() if not isinstance(result, NotApplicable)]
    rows = [
        (
            score_in_words(result, row),
            ", ".join(filter(None, (decided_in_words(result, row), truth_in_words(result, row)))),
        )
        for result in done
        for row in range(len(result))
    ]
    decided = dict.fromkeys(words for _, words in rows if words)
    return "; ".join([", ".join(dict.fromkeys(words for words, _ in rows)), *decided]) if rows else ""


def nothing_in(results: Mapping[str, Explanation | NotApplicable], task: Task, target: Any) -> str:
    """Returns why an image has no map: what was asked for and is not there, with the highest score that there was."""
    done = (result for result in results.values() if not isinstance(result, NotApplicable))
    return next((why for result in done for why in result.absences.values()), task.nothing(target))


def one_ahead(
    read: Callable[[Sequence[Path]], list[Read]], parts: Sequence[list[Path]]
) -> Iterator[tuple[list[Path], list[Read]]]:
    """Yields files with what was read of them, while a thread reads the next ones."""
    with ThreadPoolExecutor(1) as reader:
        next_one = reader.submit(read, parts[0]) if parts else None
        for k, part in enumerate(parts):
            assert next_one is not None
            done = next_one.result()
            next_one = reader.submit(read, parts[k + 1]) if k + 1 < len(parts) else None
            yield part, done


class Writing:
    """Threads write what becomes of images, while the next ones are explained; the manifest hears of it in order.

    At most `most` images wait; then the next one waits for the first of them. It is a context manager: at its end, also
    by an error or Ctrl-C, images under way are written and recorded, and those not begun are not.
    """

    def __init__(self, manifest: Manifest, most: int, tell: Callable[[str], object]) -> None:
        self._manifest, self._most, self._tell = manifest, most, tell
        self._threads = ThreadPoolExecutor(min(WRITERS, os.cpu_count() or 1), "konkyo-writing")
        self._waiting: deque[tuple[Path, Future[tuple[dict[str, Any], str]]]] = deque()

    def add(self, file: Path, write: Callable[[], tuple[dict[str, Any], str]]) -> None:
        """Takes an image and what writes its files. -> its entry, and a line about it, once all are written.

        An ImageError of `write` makes it a skipped image; all other errors, also of images before it, come from here.
        """
        self._waiting.append((file, self._threads.submit(write)))
        while len(self._waiting) > self._most:
            self._record()

    def _record(self) -> None:
        file, written = self._waiting.popleft()
        with self._manifest.image(file) as entry:
            values, line = written.result()
            entry.update(values)
            self._tell(line)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: object) -> None:
        try:
            while self._waiting and kind is None:
                self._record()
        finally:
            under_way = [waiting for waiting in self._waiting if not waiting[1].cancel()]
            self._waiting = deque(under_way)
            while self._waiting:
                with suppress(KonkyoError):  # what ended the command is told
                    self._record()
            self._threads.shutdown()


def batches(files: Sequence[Path], size: int) -> list[list[Path]]:
    """Returns the files, `size` at a time."""
    return [list(files[start : start + size]) for start in range(0, len(files), size)]


def rows_of(
    results: Mapping[str, Explanation | NotApplicable],
    title: str,
    entry: dict[str, Any],
    brightness: str = "probability",
) -> list[Row]:
    """Returns a row of the contact sheet per target; what the manifest says of them goes into the entry."""
    from konkyo.explanation.sheet import rows_of as rows_of_sheet

    done = {name: result for name, result in results.items() if not isinstance(result, NotApplicable)}
    entry["not_applicable"] = [str(result) for result in results.values() if isinstance(result, NotApplicable)]
    rows = rows_of_sheet(results, title, brightness)
    for row in range(len(rows)):
        for name, result in done.items():
            known = {"method": name, "label": result.labels[row], "layer": result.layer}
            known |= {"diagnosis": result.diagnosis[row].kind}
            entry.setdefault("maps", []).append(known | facts(result, row))
    return rows

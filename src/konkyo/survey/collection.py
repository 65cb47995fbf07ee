"""Answers of several places become one table: databases of a served survey, files of the offline page, tables."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from konkyo.errors import KonkyoError
from konkyo.survey.form import CODE, Answer, Form, answer_of, read_answers
from konkyo.survey.order import order_of
from konkyo.survey.store import Store
from konkyo.utils.files import read_json

DATABASES = (".sqlite", ".sqlite3", ".db")
_MOST_BYTES = 50_000_000


@dataclass(eq=False)
class Collection:
    """A collection is the answers to one form, one by each rater to each item, and what was said in joining them."""

    form: Form
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def raters(self) -> int:
        """Returns how many people answered."""
        return len({rater for rater, _ in self.answers})

    def add(self, answers: Sequence[Answer], name: str) -> None:
        """Adds the answers of a file. Of two different ones to one item the later counts, by their timestamps."""
        same, changed = 0, 0
        for answer in answers:
            before = self.answers.get((answer.rater, answer.item))
            same += before == answer
            changed += before is not None and before != answer
            if before is None or _time(answer) >= _time(before):
                self.answers[answer.rater, answer.item] = answer
        if same:
            self.notes.append(f"{name}: {same} answers were there already")
        if changed:
            self.notes.append(
                f"{name}: {changed} answers differ from those of the same rater to the same item; the later counts"
            )


def collect(form: Form, files: Sequence[str | Path]) -> Collection:
    """Joins the answers of databases (.sqlite), files of the offline page (.json) and tables (.csv).

    KonkyoError: a file cannot be read, or holds an answer that does not belong to the form.
    """
    collection = Collection(form)
    for name in files:
        collection.add(answers_in(Path(name), form), Path(name).name)
    return collection


def answers_in(path: Path, form: Form) -> list[Answer]:
    """Returns the answers in one file, of the kinds that `collect` joins. KonkyoError: as of `collect`."""
    if path.suffix == ".json":
        return offline_answers(path, form)
    if path.suffix not in DATABASES:
        return read_answers(path, form)
    with closing(Store(path)) as store:
        if store.form.form_hash != form.form_hash:
            raise KonkyoError(f"{path} holds answers to another form")
        return store.answers()


def offline_answers(path: Path, form: Form) -> list[Answer]:
    """Returns the answers of a file that the offline page saved.

    Every answer must be of the form, and of the two pictures that the rater's code makes it show.
    KonkyoError: it is no such file, or an answer is wrong.
    """
    if path.is_file() and path.stat().st_size > _MOST_BYTES:
        raise KonkyoError(f"{path} is larger than any file of answers")
    values = read_json(path)
    if not isinstance(values, dict) or values.get("konkyo_survey") != 1 or not isinstance(values.get("answers"), list):
        raise KonkyoError(f"{path} is no file of answers that a survey's page saved")
    if values.get("form_hash") != form.form_hash:
        raise KonkyoError(f"{path} holds answers to another form ({str(values.get('form_hash'))[:12]}...)")
    rater = values.get("rater")
    if not isinstance(rater, str) or not CODE.fullmatch(rater):
        raise KonkyoError(f"{path}: a rater's code has eight characters; got {str(rater)[:80]!r}")
    shown = {showing.item.id: showing for showing in order_of(form, rater)}
    answers: dict[str, Answer] = {}
    for entry in values["answers"]:
        item = entry.get("item") if isinstance(entry, dict) else None
        if not isinstance(item, str) or item not in shown:
            raise KonkyoError(f"{path}: the form has no item {str(item)[:80]!r}")
        if item in answers:
            raise KonkyoError(f"{path}: item {item} is answered twice")
        answers[item] = _checked(entry, item, rater, shown, form, path)
    return list(answers.values())


def _checked(entry: dict[str, Any], item: str, rater: str, shown: dict[str, Any], form: Form, path: Path) -> Answer:
    left, right = shown[item].left, shown[item].right
    pictures = shown[item].item.pictures
    if (entry.get("left"), entry.get("right")) != (pictures[left], pictures[right]):
        raise KonkyoError(f"{path}: item {item} shows other pictures than rater {rater} was asked about")
    known = {name: entry.get(name) for name in ("answer", "ms", "timestamp", "position")}
    methods = {"method_left": left, "method_right": right}
    try:
        return answer_of(known | methods | {"rater": rater, "item": item, "form_hash": form.form_hash}, form)
    except KonkyoError as error:
        raise KonkyoError(f"{path}: {error}") from error


def _time(answer: Answer) -> datetime:
    time = datetime.fromisoformat(answer.timestamp.replace("Z", "+00:00"))
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)

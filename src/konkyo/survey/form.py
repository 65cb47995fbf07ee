"""A form: what raters are asked, as a folder of one description and of pictures; and the table of what they answer."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from konkyo.errors import KonkyoError, unknown
from konkyo.utils.files import csv_text, plain, read_bytes, read_json, read_text, write_text

FORM = "form.json"
VERSION = 1
Kind: TypeAlias = Literal["plain", "repeat", "attention"]
"""What an item is for. Preferences are counted over plain items alone; the others judge the rater."""
Word: TypeAlias = Literal["left", "right", "tie", "cannot_judge"]
"""What can be answered."""
WORDS: tuple[Word, ...] = get_args(Word)
LANGUAGES = ("en", "ja")
FEW = 24
"""With fewer plain items than this, hardly any preference can be shown."""
CODE = re.compile(r"[0-9A-HJKMNP-TV-Z]{8}")
"""The code of a rater: eight characters, without those that are mistaken for others."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}(\.webp)?")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Item:
    """An item is one question: two pictures of the same image and target, and which of them is better."""

    id: str
    kind: Kind
    image: str
    """What the source image is called."""
    sha256: str
    """The digest of the source image's pixels; "" where it is not known."""
    target: str
    """The label of what the maps explain."""
    original: str
    """The file of the picture without a map."""
    pictures: Mapping[str, str]
    """The file of every method's picture, by the method's name. The names of the files do not tell the methods."""
    stratum: str = ""
    """What the sampling rule drew it for, as the class; "" of simple random samples."""
    of: str | None = None
    """Of a repeat: the id of the plain item that it shows again, with its sides swapped."""
    expected: str | None = None
    """Of an attention item: the one of `pictures` that an attentive rater prefers, or the word that they are told."""

    @property
    def is_instruction(self) -> bool:
        """Tells whether the item asks for a certain answer, in place of a judgement."""
        return self.expected in WORDS


@dataclass(frozen=True)
class Form:
    """A form is what is asked: its texts, its items, and how these were drawn."""

    texts: Mapping[str, Mapping[str, str]]
    """"title", "question" and "consent" by language; the page offers these languages."""
    methods: tuple[str, ...]
    """What is compared: two names or more."""
    items: tuple[Item, ...]
    seed: int
    """It decides which items were drawn, and the order and sides of every rater."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """The rule, how many items could be drawn, how many were, and how many were left out by reason."""
    drawing: Mapping[str, Any] = field(default_factory=dict)
    """How the pictures are drawn."""
    sources: tuple[Mapping[str, Any], ...] = ()
    """Where the maps come from, by method."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of every file of a picture."""

    @cached_property
    def form_hash(self) -> str:
        """Returns the digest of all that is asked, pictures included; every answer bears it."""
        text = json.dumps(plain(self.as_json()), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def plain_items(self) -> tuple[Item, ...]:
        """Returns the items that preferences are counted over."""
        return tuple(item for item in self.items if item.kind == "plain")

    def as_json(self) -> dict[str, Any]:
        """Returns all of it but the hash, as plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"items": [asdict(item) for item in self.items]}

    def item(self, name: str) -> Item:
        """Returns the item of this id. KonkyoError: there is none."""
        for item in self.items:
            if item.id == name:
                return item
        raise unknown("item", name, [item.id for item in self.items])

    def save(self, folder: str | Path) -> Path:
        """Writes the description into the folder, in which the pictures already are. -> the file"""
        file = Path(folder) / FORM
        values = {"form": VERSION, "form_hash": self.form_hash, **self.as_json()}
        write_text(file, json.dumps(plain(values), indent=1, ensure_ascii=False) + "\n")
        return file

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = False) -> Form:
        """Reads the form of a folder, or a form.json. `verify`: every picture is compared with its digest.

        KonkyoError: there is none, it was changed after it was made, or it contradicts itself.
        """
        path = Path(folder)
        file = path / FORM if path.is_dir() else path
        form = cls.of_json(read_json(file), str(file))
        for name, digest in form.digests.items() if verify else ():
            if hashlib.sha256(read_bytes(file.parent / name)).hexdigest() != digest:
                raise KonkyoError(f"{file.parent / name} is not the picture that {file} was made with")
        return form

    @classmethod
    def of_json(cls, values: Any, name: str = "the form") -> Form:
        """Returns the form that a form.json holds; `name` stands in errors. KonkyoError: as of `load`."""
        if not isinstance(values, dict) or values.get("form") != VERSION:
            raise KonkyoError(f"{name} is no form of a survey of version {VERSION}")
        try:
            items = tuple(Item(**item) for item in values["items"])
            known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
            form = cls(
                **{**known, "items": items, "methods": tuple(known["methods"]), "sources": tuple(known["sources"])}
            )
            _require_sound(form)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise KonkyoError(f"{name} is no form of a survey: {error}") from error
        if form.form_hash != values.get("form_hash"):
            raise KonkyoError(f"{name} was changed after it was made: its hash is another; build the form again")
        return form


def _require_sound(form: Form) -> None:
    """Checks a form in itself. ValueError: what is wrong."""
    ids = Counter(item.id for item in form.items)
    if not ids or max(ids.values()) > 1:
        raise ValueError("it has no items" if not ids else "two of its items have one id")
    if len(set(form.methods)) < 2 or len(set(form.methods)) < len(form.methods):
        raise ValueError(f"it compares two methods or more; got {', '.join(form.methods)}")
    if not set(form.texts) & set(LANGUAGES) or set(form.texts) - set(LANGUAGES):
        raise ValueError(f"its texts are of {', '.join(LANGUAGES)}; got {', '.join(form.texts)}")
    for texts in form.texts.values():
        if not all(isinstance(texts[key], str) for key in ("title", "question", "consent")):
            raise ValueError("title, question and consent are texts")
    plain_ids = {item.id for item in form.plain_items}
    for item in form.items:
        if not _NAME.fullmatch(item.id) or item.kind not in get_args(Kind):
            raise ValueError(f"item {item.id!r} of kind {item.kind!r} is none")
        if item.kind != "attention" and set(item.pictures) != set(form.methods):
            raise ValueError(f"item {item.id} has pictures of {', '.join(item.pictures)}")
        if item.kind == "repeat" and item.of not in plain_ids:
            raise ValueError(f"item {item.id} repeats {item.of!r}, which is no plain item")
        if item.kind == "attention" and item.expected not in (*item.pictures, *WORDS):
            raise ValueError(f"item {item.id} expects {item.expected!r}")
        if len(item.pictures) < 2 or not all(map(_NAME.fullmatch, (item.original, *item.pictures.values()))):
            raise ValueError(f"item {item.id} has no two pictures, or a picture of a wrong name")
        if not {item.original, *item.pictures.values()} <= form.digests.keys():
            raise ValueError(f"item {item.id} has a picture without a digest")
    if not all(_NAME.fullmatch(name) and _DIGEST.fullmatch(digest) for name, digest in form.digests.items()):
        raise ValueError("the name or the digest of a picture is none")


# --- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """An answer is one line of the table: who chose what of which two, and how long it took."""

    rater: str
    item: str
    method_left: str
    """What was shown on the left; of attention items "(shuffled)" or "(blank)" may be one of the two."""
    method_right: str
    answer: Word
    ms: int
    """Milliseconds from when the pictures were shown to the answer."""
    timestamp: str
    """When the rater answered, as in 2026-01-31T09:30:00Z."""
    form_hash: str
    position: int = 0
    """The place of the item in the rater's order, from 1; 0 where it is not known."""

    @property
    def preferred(self) -> str | None:
        """Returns the name of what was preferred; None of ties and where the rater could not judge."""
        return {"left": self.method_left, "right": self.method_right}.get(self.answer)

    def passed(self, item: Item) -> bool | None:
        """Tells whether an attention item was answered as expected; None of other items."""
        if item.expected is None:
            return None
        return item.expected in (self.answer, self.preferred)


COLUMNS = tuple(f.name for f in fields(Answer))
_MOST_MS = 24 * 3600 * 1000


def answer_of(values: Mapping[str, Any], form: Form | None = None) -> Answer:
    """Returns an answer that was checked, against a form where one is given. KonkyoError: what is wrong with it."""
    if missing := [name for name in COLUMNS[:-1] if values.get(name) in (None, "")]:
        raise KonkyoError(f"an answer has the columns {', '.join(COLUMNS)}; {', '.join(missing)} is missing")
    try:
        numbers = {"ms": int(values["ms"]), "position": int(values.get("position") or 0)}
    except (TypeError, ValueError, OverflowError) as error:
        raise KonkyoError(f"ms and position of an answer are whole numbers: {error}") from error
    answer = Answer(**{name: str(values[name]) for name in COLUMNS[:5] + COLUMNS[6:8]} | numbers)  # type: ignore[arg-type] # checked below
    if answer.answer not in WORDS:
        raise unknown("answer", answer.answer, WORDS)
    if not 0 <= answer.ms <= _MOST_MS or not 0 <= answer.position <= 100_000:
        raise KonkyoError(f"ms is from 0 to {_MOST_MS}, position from 0; got {answer.ms} and {answer.position}")
    if len(answer.rater) > 80 or not answer.rater.isprintable():
        raise KonkyoError(f"a rater's code is a short word; got {answer.rater[:80]!r}")
    try:
        datetime.fromisoformat(answer.timestamp.replace("Z", "+00:00"))
    except ValueError as error:
        raise KonkyoError(f"a timestamp is as in 2026-01-31T09:30:00Z; got {answer.timestamp[:80]!r}") from error
    if form is not None:
        _require_of(answer, form)
    return answer


def _require_of(answer: Answer, form: Form) -> None:
    """Checks that an answer belongs to a form. KonkyoError: it does not."""
    if answer.form_hash != form.form_hash:
        raise KonkyoError(
            f"an answer of rater {answer.rater} is of another form ({answer.form_hash[:12]}..., "
            f"not {form.form_hash[:12]}...)"
        )
    item = form.item(answer.item)
    for name in (answer.method_left, answer.method_right):
        if name not in item.pictures:
            raise unknown(f"method of item {item.id}", name, item.pictures)
    if answer.method_left == answer.method_right:
        raise KonkyoError(f"an answer compares two methods; got {answer.method_left} twice (item {item.id})")


def read_answers(source: str | Path, form: Form | None = None) -> list[Answer]:
    """Reads a table of answers (csv). `form`: every answer is checked against it.

    KonkyoError: the file is no such table, an answer is wrong, or a rater answered an item twice.
    """
    path = Path(source)
    reader = csv.DictReader(io.StringIO(read_text(path)))
    answers: list[Answer] = []
    try:
        for line in reader:
            answers.append(answer_of({k: _unquoted(v) for k, v in line.items() if k is not None}, form))
    except csv.Error as error:
        raise KonkyoError(f"{path}, line {reader.line_num}: {error}") from error
    except KonkyoError as error:
        raise KonkyoError(f"{path}, line {reader.line_num}: {error}") from error
    twice = [key for key, count in Counter((a.rater, a.item) for a in answers).items() if count > 1]
    if twice:
        raise KonkyoError(f"{path}: rater {twice[0][0]} answered item {twice[0][1]} more than once")
    return answers


def write_answers(answers: Iterable[Answer], file: str | Path) -> Path:
    """Writes answers as a table (csv), by rater and then in the order in which they were asked. -> the file"""
    listed = sorted(answers, key=lambda a: (a.rater, a.position, a.item))
    write_text(Path(file), csv_text(COLUMNS, ([getattr(a, name) for name in COLUMNS] for a in listed)))
    return Path(file)


def _unquoted(cell: str | Sequence[str] | None) -> Any:
    """Returns a cell without the apostrophe that keeps spreadsheets from running it."""
    return cell[1:] if isinstance(cell, str) and cell[:1] == "'" and cell[1:2] in tuple("=+-@\t\r") else cell

"""The answers while a survey is served: a database of SQLite in which an answer is kept before it is acknowledged."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from threading import RLock
from typing import Any

from konkyo.errors import KonkyoError
from konkyo.survey.form import CODE, WORDS, Answer, Form, answer_of
from konkyo.survey.order import ALPHABET

MOST_RATERS = 10_000
MOST_CHANGES = 20
"""So many answers per item a rater can give at most; the last one counts."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS survey (form_hash TEXT NOT NULL, form TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS raters (
    code TEXT PRIMARY KEY, invited INTEGER NOT NULL, made TEXT NOT NULL, consented TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY, rater TEXT NOT NULL REFERENCES raters (code), key TEXT NOT NULL, item TEXT NOT NULL,
    position INTEGER NOT NULL, method_left TEXT NOT NULL, method_right TEXT NOT NULL,
    answer TEXT NOT NULL, ms INTEGER NOT NULL, timestamp TEXT NOT NULL, received TEXT NOT NULL,
    UNIQUE (rater, key)
);
"""


class RefusedError(KonkyoError):
    """What a rater sent cannot be taken; `status` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Store:
    """A store keeps raters and answers of one form. Every change is one transaction, on the disk when it returns."""

    def __init__(self, file: str | Path, form: Form | None = None) -> None:
        """Opens the file; with a `form` it is made if it is not there. KonkyoError: it is of another form, or none."""
        self.file = Path(file)
        if form is None and not self.file.is_file():
            raise KonkyoError(f"there is no database of a survey at {self.file}")
        self._lock = RLock()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.file, timeout=30, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute("PRAGMA foreign_keys=ON")
            if form is not None:
                self._database.executescript(_SCHEMA)
            self.form = self._form(form)
        except (sqlite3.Error, OSError) as error:
            raise KonkyoError(f"{self.file} cannot be used as the database of a survey: {error}") from error

    def _form(self, form: Form | None) -> Form:
        with self._change():
            row = self._database.execute("SELECT form FROM survey").fetchone()
            if row is None:
                if form is None:
                    raise KonkyoError(f"{self.file} holds no survey")
                text = json.dumps({"form": 1, "form_hash": form.form_hash, **form.as_json()}, ensure_ascii=False)
                self._database.execute("INSERT INTO survey VALUES (?, ?)", (form.form_hash, text))
                return form
        known = Form.of_json(json.loads(row[0]), str(self.file))
        if form is not None and known.form_hash != form.form_hash:
            raise KonkyoError(
                f"{self.file} holds answers to another form ({known.form_hash[:12]}..., not {form.form_hash[:12]}...); "
                "give another --database"
            )
        return known

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._database.close()

    # --- raters -------------------------------------------------------------------------------------------------------

    def invite(self, count: int) -> list[str]:
        """Makes codes for raters who are invited until there are `count`. -> the codes of all that are"""
        with self._change():
            known = self._invited()
            for _ in range(count - len(known)):
                self._add(invited=True)
            return self._invited()

    def _invited(self) -> list[str]:
        rows = self._database.execute("SELECT code FROM raters WHERE invited ORDER BY made, code").fetchall()
        return [code for (code,) in rows]

    @property
    def is_open(self) -> bool:
        """Tells whether anybody may take part: as long as nobody is invited."""
        with self._lock:
            return self._database.execute("SELECT 1 FROM raters WHERE invited LIMIT 1").fetchone() is None

    def _add(self, *, invited: bool, consented: str | None = None) -> str:
        if self._database.execute("SELECT count(*) FROM raters").fetchone()[0] >= MOST_RATERS:
            raise RefusedError("the survey has as many raters as it can take", 403)
        while True:
            code = "".join(secrets.choice(ALPHABET) for _ in range(8))
            values = (code, int(invited), now(), consented)
            if self._database.execute("INSERT OR IGNORE INTO raters VALUES (?, ?, ?, ?)", values).rowcount:
                return code

    def enrol(self, code: str | None = None) -> str:
        """Notes the consent of a rater; without a code, makes one. -> the code. RefusedError: it is not known."""
        with self._change():
            if code is None:
                if not self.is_open:
                    raise RefusedError("the survey is for those who were invited: a code is needed", 403)
                return self._add(invited=False, consented=now())
            self._require(code)
            self._database.execute("UPDATE raters SET consented = coalesce(consented, ?) WHERE code = ?", (now(), code))
            return code

    def has_consented(self, code: str) -> bool:
        """Tells whether a rater consented. RefusedError: the code is not known."""
        with self._lock:
            return self._require(code) is not None

    def _require(self, code: str) -> str | None:
        row = None
        if CODE.fullmatch(code):
            row = self._database.execute("SELECT consented FROM raters WHERE code = ?", (code,)).fetchone()
        if row is None:
            raise RefusedError("this code is not known", 404)
        return row[0]  # type: ignore[no-any-return] # of a row of SQLite

    # --- answers ------------------------------------------------------------------------------------------------------

    def add(self, answer: Answer, key: str) -> None:
        """Keeps an answer; the same `key` again changes nothing. It is on the disk when this returns.

        RefusedError: the rater is not known, has not consented, or changed answers too often.
        """
        if answer.answer not in WORDS:
            raise RefusedError(f"an answer is one of {', '.join(WORDS)}", 422)
        with self._change():
            if self._require(answer.rater) is None:
                raise RefusedError("consent comes first", 403)
            count = "SELECT count(*) FROM answers WHERE rater = ? AND item = ? AND key != ?"
            if self._database.execute(count, (answer.rater, answer.item, key)).fetchone()[0] >= MOST_CHANGES:
                raise RefusedError("this answer was changed too often", 429)
            values = (answer.rater, key, answer.item, answer.position, answer.method_left, answer.method_right)
            values += (answer.answer, answer.ms, answer.timestamp, now())  # type: ignore[assignment] # a longer row
            columns = "rater, key, item, position, method_left, method_right, answer, ms, timestamp, received"
            self._database.execute(f"INSERT OR IGNORE INTO answers ({columns}) VALUES ({', '.join('?' * 10)})", values)

    def answers_of(self, rater: str) -> dict[str, str]:
        """Returns what a rater answered, by item."""
        with self._lock:
            rows = self._database.execute("SELECT item, answer FROM answers WHERE rater = ? ORDER BY number", (rater,))
            return dict(rows.fetchall())

    def answers(self) -> list[Answer]:
        """Returns the last answer of every rater to every item."""
        names = "rater, item, method_left, method_right, answer, ms, timestamp, position"
        with self._lock:
            rows = self._database.execute(f"SELECT {names} FROM answers ORDER BY number").fetchall()
        last: dict[tuple[str, str], Answer] = {}
        for row in rows:
            values: dict[str, Any] = dict(zip(names.split(", "), row, strict=True))
            answer = answer_of(values | {"form_hash": self.form.form_hash}, self.form)
            last[answer.rater, answer.item] = answer
        return list(last.values())


def now() -> str:
    """Returns the time in UTC, as answers have it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""Questions to the rows of a run, in SQL: DuckDB reads the shards that have receipts, a part at a time."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from konkyo.errors import KonkyoError, did_you_mean, install_hint, unknown
from konkyo.runs.shards import NOTHING, Receipt
from konkyo.utils.arrow import arrow

SUSPICIOUS = "suspicious"
"""The order in which the most suspicious rows come first."""
LIMIT = 20
UNSURE = 0.5
"""A decision below this probability is unsure, as in reports."""
SUSPICION = f"""CASE
    WHEN error IS NOT NULL THEN 5.0
    WHEN correct = false THEN 3.0 + coalesce(probability, 0)
    WHEN diagnosis = '{NOTHING}' THEN 1.0
    WHEN diagnosis <> 'ok' THEN 2.0
    ELSE 1.0 - coalesce(probability, 1)
END"""
WHY = f"""CASE
    WHEN error IS NOT NULL THEN 'error'
    WHEN correct = false THEN 'wrong'
    WHEN diagnosis = '{NOTHING}' THEN 'nothing found'
    WHEN diagnosis <> 'ok' THEN 'doubtful map'
    WHEN probability < {UNSURE} THEN 'unsure'
    ELSE 'ok'
END"""
VIEW = f"""CREATE VIEW rows AS SELECT shards.*, times.seconds, CAST({SUSPICION} AS DOUBLE) AS suspicion, {WHY} AS why
FROM shards LEFT JOIN (
    SELECT shard, explain_seconds / nullif(images, 0) AS seconds FROM receipts
) AS times USING (shard)"""
SHOWN = ("why", "suspicion", "image", "true_label", "decision", "probability", "method", "label", "score", "diagnosis")
"""The columns of an answer, unless others are named; metrics and errors come after them."""
ORDER = ("image", "method", "row")
"""What decides between rows that are equal in the order."""
BATCH = 1024
"""So many rows of an answer are fetched at a time."""


@dataclass(frozen=True)
class Question:
    """A question is what is asked of the rows: parts of a sentence of SQL, or the whole of it."""

    where: str | None = None
    columns: Sequence[str] = ()
    """() is `SHOWN`, the metrics and the error."""
    sort: str = SUSPICIOUS
    """A column, with "-" before it from the highest down; or "suspicious"."""
    limit: int | None = LIMIT
    sql: str | None = None
    """A whole query of the view `rows`; then nothing else is said."""

    def __post_init__(self) -> None:
        if self.limit is not None and (isinstance(self.limit, bool) or self.limit < 1):
            raise KonkyoError(f"limit is a number of rows, 1 or more, or None for all; got {self.limit!r}")
        if isinstance(self.columns, str):
            raise KonkyoError(f"columns is a list of names; got {self.columns!r}")
        if self.sql is not None and (self.where or self.columns or self.sort != SUSPICIOUS):
            raise KonkyoError("sql is the whole query; where, columns and sort stand in it")

    def text(self, known: Sequence[str], metrics: Sequence[str]) -> str:
        """Returns the question as SQL. KonkyoError: a column that is not known."""
        if self.sql is not None:
            return self.sql
        columns = list(self.columns) or [*SHOWN, *(name for name in metrics if name not in SHOWN), "error"]
        name = self.sort.removeprefix("-")
        for column in (*columns, *(() if name == SUSPICIOUS else (name,))):
            if column not in known:
                raise unknown("column", column, known)
        first = "suspicion DESC" if name == SUSPICIOUS else f"{quoted(name)} {'DESC' if name != self.sort else 'ASC'}"
        where = f" WHERE (\n{self.where}\n)" if self.where else ""  # a comment in it ends with its line
        limit = "" if self.limit is None else f" LIMIT {self.limit}"
        order = f"{first} NULLS LAST, {', '.join(map(quoted, ORDER))}"
        return f"SELECT {', '.join(map(quoted, columns))} FROM rows{where} ORDER BY {order}{limit}"


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer has columns, and rows that are fetched a few at a time while they are gone through, once."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


@dataclass(frozen=True, eq=False)
class Database:
    """A database in memory sees the view `rows` of some shards, and no file."""

    connection: Any
    library: Any
    known: tuple[str, ...]
    """The columns of the view."""

    def ask(self, sql: str) -> Answer:
        """Returns the answer to one SELECT, good until the next. KonkyoError: something else, or SQL that fails."""
        with self.translated_errors():
            statements = self.connection.extract_statements(sql)
            if [statement.type for statement in statements] != [self.library.StatementType.SELECT]:
                kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
                raise KonkyoError(f"a query is one SELECT; got {kinds}")
            cursor = self.connection.execute(statements[0])
        return Answer(tuple(str(entry[0]) for entry in cursor.description or ()), self._fetched(cursor))

    def table(self, sql: str) -> list[dict[str, Any]]:
        """Returns the whole answer to a SELECT as dictionaries."""
        answer = self.ask(sql)
        return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]

    def _fetched(self, cursor: Any) -> Iterator[tuple[Any, ...]]:
        while True:
            with self.translated_errors():
                rows = cursor.fetchmany(BATCH)
            if not rows:
                return
            yield from rows

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Within the context an error of DuckDB becomes one of ours."""
        try:
            yield
        except self.library.Error as error:
            reason = _reason(str(error), self.known)
            raise KonkyoError(f"the query cannot be run: {reason}. Columns of rows: {', '.join(self.known)}") from error


def _reason(text: str, known: Sequence[str]) -> str:
    """Returns in words what DuckDB says of a query: "<kind> Error: <reason>\\n\\nLINE <n>: <line>\\n  ^"."""
    reason, _, place = text.partition("\n\nLINE ")
    line = place.partition(": ")[2].partition("\n")[0].strip()
    if column := re.search(r'Referenced column "(.+)" not found', reason):
        name = column[1]
        return f"there is no column {name!r}{did_you_mean(name, known)} A text has single quotes, as in = '{name}'"
    if reason.startswith("Parser Error: ") and line.startswith(") ORDER BY"):  # behind a condition, see `Question.text`
        return "the condition ends before it is whole, or closes a bracket that it does not open"
    if near := re.match(r'Parser Error: syntax error at or near "(.+)"$', reason):
        return (
            f"this is no SQL at {near[1]!r} in {line!r}; a condition is as in \"method = 'grad_cam' AND score > 0.9\""
        )
    return " ".join(reason.partition(": ")[2].split()) + (f", in {line!r}" if line else "")


@contextmanager
def opened(files: Sequence[Path], receipts: Sequence[Receipt] = ()) -> Iterator[Database]:
    """Yields a database with the rows of these shards alone, and with their receipts.

    A row has the number of its `shard`, and the `seconds` that an image of it took, the mean of the shard. KonkyoError:
    no shard, or no DuckDB.
    """
    if not files:
        raise KonkyoError("no shard is finished yet: there is nothing to query")
    duckdb = _duckdb()
    with tempfile.TemporaryDirectory() as spilled, duckdb.connect(":memory:") as connection:
        connection.register("shards", _dataset(files))
        connection.register("receipts", _table(receipts))
        connection.execute(VIEW)
        known = tuple(str(row[0]) for row in connection.execute("DESCRIBE rows").fetchall())
        connection.execute(f"SET temp_directory = {literal(spilled)}")
        for setting in ("enable_external_access", "python_enable_replacements"):
            connection.execute(f"SET {setting} = false")
        connection.execute("SET lock_configuration = true")
        yield Database(connection, duckdb, known)


@contextmanager
def answer_to(
    files: Sequence[Path], question: Question, metrics: Sequence[str] = (), receipts: Sequence[Receipt] = ()
) -> Iterator[Answer]:
    """Yields the answer to a question of these shards. KonkyoError: as of `opened`, or SQL that is refused."""
    with opened(files, receipts) as database:
        yield database.ask(question.text(database.known, metrics))


def quoted(name: str) -> str:
    """Returns a name as SQL has it.

    >>> quoted("ebpg@box")
    '"ebpg@box"'
    """
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """Returns a text as SQL has it."""
    return "'" + value.replace("'", "''") + "'"


def _dataset(files: Sequence[Path]) -> Any:
    """Returns the shards as one table, with a column for the number of the shard."""
    pa = arrow()
    from pyarrow import dataset, fs

    numbers = [dataset.field("shard") == pa.scalar(int(file.stem.rpartition("-")[2]), pa.int32()) for file in files]
    schema = pa.parquet.read_schema(files[0]).append(pa.field("shard", pa.int32()))
    form, place = dataset.ParquetFileFormat(), fs.LocalFileSystem()
    return dataset.FileSystemDataset.from_paths(
        [str(file) for file in files], schema=schema, format=form, filesystem=place, partitions=numbers
    )


def _table(receipts: Sequence[Receipt]) -> Any:
    """Returns receipts as a table, with what took how many seconds in columns."""
    pa = arrow()
    columns: dict[str, Any] = {name: pa.int64() for name in ("shard", "images", "rows", "errors", "refused", "bytes")}
    columns |= {"tries": pa.int64(), "piece": pa.string(), "host": pa.string()}
    seconds = ("explain", "write", "all")
    rows = [
        {name: getattr(receipt, name) for name in columns}
        | {f"{what}_seconds": receipt.seconds.get(what) for what in seconds}
        for receipt in receipts
    ]
    columns |= {f"{what}_seconds": pa.float64() for what in seconds}
    return pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items())))


def _duckdb() -> Any:
    """Returns DuckDB. KonkyoError: it is not installed."""
    try:
        import duckdb
    except ImportError as error:
        raise KonkyoError(f"queries are answered by DuckDB: {install_hint('query')}") from error
    return duckdb

"""Files of JSON and text: what they hold, or why they cannot be read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konkyo.errors import KonkyoError
from konkyo.utils.files import DEPTH, parse_json, read_bytes, read_json, read_text
from konkyo.utils.ledger import Ledger

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_json_comes_back(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert parse_json(text) == value
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("begin", ["[", '{"a":', '[{"a":', '{"a":['])
@pytest.mark.parametrize("closed", [True, False])
def test_json_that_is_too_deep(begin: str, closed: bool) -> None:
    levels = sum(c in "[{" for c in begin)
    end = "".join({"[": "]", "{": "}"}[c] for c in reversed(begin) if c in "[{")
    for count in (DEPTH // levels + 1, 5_000, 200_000):
        with pytest.raises(ValueError, match="deep in each other" if closed else "deep in each other|Expecting"):
            parse_json(begin * count + "1" + end * count * closed)
    assert parse_json(begin * (DEPTH // levels) + "1" + end * (DEPTH // levels))


def test_brackets_in_strings_and_side_by_side_are_not_deep() -> None:
    text = '["' + "[" * 500 + '", "\\"' + "{[" * 500 + '"]'
    assert parse_json(text) == ["[" * 500, '"' + "{[" * 500]
    assert len(parse_json("[" + ",".join(["[[]]"] * 5_000) + "]")) == 5_000


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"\x00", b"[" * 100_000, b"1" * 5_000])
def test_files_that_are_no_json(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(KonkyoError, match=r"a\.json cannot be read"):
        read_json(tmp_path / "a.json")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert read_text(tmp_path / "a.json") == '{"a": 1}\n'


def test_pipes_devices_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "none", tmp_path / "a\0b"):
        for read in (read_bytes, read_text, read_json):
            with pytest.raises(KonkyoError, match="cannot be read"):
                read(path)


def test_a_ledger_with_a_deep_line_counts_it_as_damaged(tmp_path: Path) -> None:
    from zlib import crc32

    path = tmp_path / "run.jsonl"
    with Ledger(path, {"a": 1}) as ledger:
        ledger.add("one", 1)
    deep = b'{"key": "two", "values": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    path.write_bytes(path.read_bytes() + b"%08x %s\n" % (crc32(deep), deep))
    with Ledger(path, {"a": 1}) as ledger:
        assert (ledger.entries, ledger.damaged) == ({"one": 1}, 1)

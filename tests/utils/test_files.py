"""Files of JSON and text: what they hold, or why they cannot be read or written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from konkyo.errors import KonkyoError
from konkyo.utils.files import DEPTH, parse_json, read_bytes, read_json, read_text, replacing
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


# --- permissions, and a full disk -------------------------------------------------------------------------------------


def _tensors(path: Path) -> None:
    save_file({"a": torch.zeros(30000)}, path)


def _checkpoint(path: Path) -> None:
    torch.save({"a": torch.zeros(30000)}, path)


def _text(path: Path) -> None:
    path.write_text("a,b\n" * 30000)


WRITERS = {"tensors": _tensors, "checkpoint": _checkpoint, "text": _text}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)], ids=oct)
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, writer: str, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "file") as temporary:
            WRITERS[writer](temporary)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_the_system_does_not_take_whole_is_told_in_a_line(tmp_path: Path, writer: str) -> None:
    """Under a limit of the size of files; a full disk fails at the same places."""
    resource = pytest.importorskip("resource")
    (tmp_path / "file").write_text("before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with (
            pytest.raises(KonkyoError, match=r"file cannot be written: .") as raised,
            replacing(tmp_path / "file") as temporary,
        ):
            WRITERS[writer](temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(str(raised.value).splitlines()) == 1
    assert "enforce fail" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), replacing(tmp_path / "file"):
        raise RuntimeError("shapes do not match")
    assert not list(tmp_path.iterdir())

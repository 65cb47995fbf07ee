"""The record of work done: appended, cut back to what is whole, held by one process, of one group of settings."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from konkyo.errors import KonkyoError
from konkyo.utils import ledger as ledger_module
from konkyo.utils.ledger import Ledger, differences, read_ledger

SETTINGS = {"seed": 0, "of": {"method": "grad_cam", "layers": [1, 2]}}


def record(path: Path, count: int) -> bytes:
    with Ledger(path, SETTINGS) as ledger:
        for index in range(count):
            ledger.add(f"image {index}", {"score": index / 3, "name": f"写真-{index}"})
    return path.read_bytes()


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    record(tmp_path / "a.jsonl", 3)
    with Ledger(tmp_path / "a.jsonl", SETTINGS) as ledger:
        assert list(ledger.entries) == ["image 0", "image 1", "image 2"]
        assert ledger.entries["image 2"] == {"score": 2 / 3, "name": "写真-2"}
        ledger.add("image 0", {"score": math.nan})
    settings, entries = read_ledger(tmp_path / "a.jsonl")
    assert settings == SETTINGS
    assert list(entries) == ["image 1", "image 2", "image 0"]  # the later entry counts
    assert math.isnan(entries["image 0"]["score"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]  # the lock is gone


@pytest.mark.parametrize("cut", range(1, 90))
def test_a_torn_tail_is_cut_off_and_its_work_counts_as_not_done(tmp_path: Path, cut: int) -> None:
    whole = record(tmp_path / "a.jsonl", 3)
    torn = whole[:-cut]
    (tmp_path / "a.jsonl").write_bytes(torn)
    kept = torn.count(b"\n") - 1
    with Ledger(tmp_path / "a.jsonl", SETTINGS) as ledger:
        assert list(ledger.entries) == [f"image {index}" for index in range(kept)]
        assert ledger.damaged == (not torn.endswith(b"\n"))
        ledger.add("image 9", {})
    assert len(read_ledger(tmp_path / "a.jsonl")[1]) == kept + 1
    assert all(line.endswith(b"\n") for line in (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True))


@pytest.mark.parametrize("at", range(0, 200, 7))
def test_a_flipped_bit_in_an_entry_is_seen(tmp_path: Path, at: int) -> None:
    whole = bytearray(record(tmp_path / "a.jsonl", 3))
    header = whole.index(b"\n") + 1
    at = header + at % (len(whole) - header - 1)
    whole[at] ^= 4
    (tmp_path / "a.jsonl").write_bytes(whole)
    with Ledger(tmp_path / "a.jsonl", SETTINGS) as ledger:
        assert 1 <= len(ledger.entries) <= 2
        assert ledger.damaged >= 1
        for key, values in ledger.entries.items():
            index = int(key.split()[1])
            assert values == {"score": index / 3, "name": f"写真-{index}"}


def test_one_more_entry_costs_its_own_line_whatever_was_done_before(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Ledger(path, SETTINGS) as ledger:
        ledger.add("first", {"a": 1})
        for index in range(2000):
            before = path.stat().st_size
            ledger.add(str(index), {"a": 1})
            assert path.stat().st_size - before < 60


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    whole = record(tmp_path / "a.jsonl", 2)
    other = {"seed": 1, "of": {"method": "layer_cam", "layers": [1, 2]}}
    with pytest.raises(KonkyoError, match=r"differ in seed \(0 there, 1 now\), of.method \(grad_cam there, layer_cam"):
        Ledger(tmp_path / "a.jsonl", other)
    assert (tmp_path / "a.jsonl").read_bytes() == whole
    with Ledger(tmp_path / "a.jsonl", {**SETTINGS, "seed": 5}, free=("seed",)) as ledger:
        assert len(ledger.entries) == 2
    assert read_ledger(tmp_path / "a.jsonl")[0]["seed"] == 5


def test_settings_that_only_one_has_differ() -> None:
    text = "Preprocess(resize=128, crop={}, mean=(0.63, 0.64, 0.62), fit='stretch')"
    assert differences({"a": text.format(128)}, {"a": text.format(60)}) == [
        "a (... crop=128, ... there, ... crop=60, ... now)"
    ]
    longer = differences({"a": text}, {"a": f"{text} and more"})
    assert longer == ["a (... there, ... and more now)"]
    assert differences({"a": 1}, {"a": 1, "b": 2}) == ["b (None there, 2 now)"]
    assert differences({"a": (1, 2), "x": math.nan}, {"a": [1, 2], "x": math.nan}) == []


@pytest.mark.parametrize("text", ["", "{}\n", "no json", "[]", '00000000 {"settings": {}}\n', "\xff\n" * 3])
def test_another_file_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    for opening in (lambda path: Ledger(path, SETTINGS), read_ledger):
        with pytest.raises(KonkyoError, match="is no record of a run"):
            opening(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == text


def test_a_second_one_is_refused_while_the_first_holds_the_file(tmp_path: Path) -> None:
    with Ledger(tmp_path / "a.jsonl", SETTINGS) as first:
        with pytest.raises(KonkyoError, match=f"another run is writing into {tmp_path}"):
            Ledger(tmp_path / "a.jsonl", SETTINGS)
        first.add("one", 1)
        assert read_ledger(tmp_path / "a.jsonl")[1] == {"one": 1}  # readers need not wait
    Ledger(tmp_path / "a.jsonl", SETTINGS).close()


def test_without_a_file_it_is_in_memory(tmp_path: Path) -> None:
    with Ledger(None, SETTINGS) as ledger:
        ledger.add("one", {"a": (1, 2)})
        assert ledger.entries == {"one": {"a": [1, 2]}}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
def test_what_a_killed_process_added_is_there(tmp_path: Path) -> None:
    source = (
        "import sys, time\nfrom pathlib import Path\nfrom konkyo.utils.ledger import Ledger\n"
        f"ledger = Ledger(Path({str(tmp_path / 'a.jsonl')!r}), {SETTINGS!r})\n"
        "for i in range(10):\n    ledger.add(str(i), i)\n"
        "print('added', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "added\n"
        with pytest.raises(KonkyoError, match="another run is writing"):
            Ledger(tmp_path / "a.jsonl", SETTINGS)
        process.send_signal(signal.SIGKILL)
    with Ledger(tmp_path / "a.jsonl", SETTINGS) as ledger:  # its lock went with it
        assert list(ledger.entries.values()) == list(range(10))


def test_a_record_without_entries_takes_any_settings(tmp_path: Path) -> None:
    record(tmp_path / "a.jsonl", 1)
    header = (tmp_path / "a.jsonl").read_text(encoding="utf-8").partition("\n")[0]
    (tmp_path / "a.jsonl").write_text(header + "\n")
    with Ledger(tmp_path / "a.jsonl", {"other": 1}) as ledger:
        ledger.add("one", 1)
    assert read_ledger(tmp_path / "a.jsonl") == ({"other": 1}, {"one": 1})


def test_disposable_entries_give_way_to_other_settings(tmp_path: Path) -> None:
    record(tmp_path / "a.jsonl", 2)
    for disposable in (lambda _: False, lambda entry: entry["score"] == 0):
        with pytest.raises(KonkyoError, match="differ in seed"):
            Ledger(tmp_path / "a.jsonl", {**SETTINGS, "seed": 1}, disposable=disposable)
    with Ledger(tmp_path / "a.jsonl", {**SETTINGS, "seed": 1}, disposable=lambda entry: entry["score"] < 1) as ledger:
        assert not ledger.entries


def test_begun_anew_the_old_entries_stay_until_the_first_new_one(tmp_path: Path) -> None:
    whole = record(tmp_path / "a.jsonl", 2)
    with Ledger(tmp_path / "a.jsonl", {"other": 1}, anew=True) as ledger:
        assert list(ledger.forgotten) == ["image 0", "image 1"]
        assert not ledger.entries
    assert (tmp_path / "a.jsonl").read_bytes() == whole
    with Ledger(tmp_path / "a.jsonl", {"other": 1}, anew=True) as ledger:
        ledger.add("one", 1)
        ledger.add("two", 2)
    assert read_ledger(tmp_path / "a.jsonl") == ({"other": 1}, {"one": 1, "two": 2})


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(ledger_module._line({"ledger": 2, "settings": SETTINGS}))
    with pytest.raises(KonkyoError, match="another version of konkyo, 2"):
        Ledger(tmp_path / "a.jsonl", SETTINGS)


def test_the_lock_goes_where_the_end_of_the_file_fails(tmp_path: Path) -> None:
    class Full:
        def close(self) -> None:
            raise OSError(28, "No space left on device")

    ledger = Ledger(tmp_path / "a.jsonl", SETTINGS)
    ledger.add("one", 1)
    ledger._file.close()  # type: ignore[union-attr]
    ledger._file = Full()  # type: ignore[assignment]
    with pytest.raises(KonkyoError, match=r"a.jsonl cannot be written: No space left"):
        ledger.close()
    Ledger(tmp_path / "a.jsonl", SETTINGS).close()

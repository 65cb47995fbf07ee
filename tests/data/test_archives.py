"""Data that comes in pieces: tars, tables of Parquet, lists, and folders at addresses."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import pickle
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import konkyo
from konkyo.data import archives, stores
from konkyo.data.archives import Member, grouped, open_tar
from konkyo.data.pieces import Pieces, pieces_of
from konkyo.data.samples import Sample, Samples, samples
from konkyo.errors import ImageError, KonkyoError

CLASSES = ("cat", "dog", "owl")


def picture(seed: int, size: tuple[int, int] = (20, 16)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed)).save(file, "PNG")
    return file.getvalue()


def pack(path: Path, members: dict[str, bytes], kind: int = tarfile.GNU_FORMAT) -> Path:
    """Python's tarfile writes the members; it is not what reads them."""
    with tarfile.open(path, "w", format=kind) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def three(start: int, **extra: bytes) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for k in range(start, start + 3):
        members |= {f"a/{k:03d}.png": png(k), f"a/{k:03d}.cls": CLASSES[k % 3].encode()}
    return members | extra


def pixels(pieces: Pieces) -> list[tuple[str, str | None, bytes]]:
    return [(s.name, s.label, s.image.tobytes()) for part in pieces.parts for s in part.open()]


def errors_of(path: Path) -> dict[str, str]:
    """The name -> error of every sample of a tar; "" if it can be read."""
    data, found = open_tar(str(path), "t.tar", {}), {}
    for index, name in enumerate(data.names):
        try:
            data[index]
            found[name.partition("/")[2]] = ""
        except ImageError as error:
            found[name.partition("/")[2]] = str(error)
    return found


@pytest.fixture
def memory() -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.rm("/", recursive=True)
    yield system
    system.rm("/", recursive=True)


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WAITS", (0.0, 0.0, 0.0))


# --- tars -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_gives_what_was_packed(tmp_path: Path, kind: int) -> None:
    long = "d" * 90 + "/" + "n" * 60
    pack(tmp_path / "x-000.tar", {**three(0), f"{long}.png": png(7), f"{long}.cls": b"2"}, kind)
    pack(tmp_path / "x-001.tar", three(3), kind)
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n")
    pieces = pieces_of(f"tar:{tmp_path}/x-{{000..001}}.tar,classes={tmp_path}/names.txt")
    assert (len(pieces), pieces.images, pieces.classes) == (2, None, CLASSES)
    read = {name: (label, data) for name, label, data in pixels(pieces)}
    want = {f"x-{k // 3:03d}.tar/a/{k:03d}": (CLASSES[k % 3], picture(k).tobytes()) for k in range(6)}
    assert read == want | {f"x-000.tar/{long}": ("owl", picture(7).tobytes())}
    assert len({part.first for part in pieces.parts}) == 2


def test_names_that_are_not_ascii_are_kept(tmp_path: Path) -> None:
    odd = {"木/ü.png": png(0), "木/ü.txt": b"Eule\n"}
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        ((name, label, _),) = pixels(pieces_of(f"tar:{pack(tmp_path / 'x.tar', odd, kind)}"))
        assert (name, label) == ("x.tar/木/ü", "Eule")
    with tarfile.open(tmp_path / "raw.tar", "w", encoding="latin-1", format=tarfile.USTAR_FORMAT) as file:
        info = tarfile.TarInfo("ü.png")
        info.size = len(png(0))
        file.addfile(info, io.BytesIO(png(0)))
    ((name, _, _),) = pixels(pieces_of(f"tar:{tmp_path / 'raw.tar'}"))
    assert name.encode("utf-8")  # as a table takes it


def test_labels_come_from_cls_json_and_txt(tmp_path: Path) -> None:
    members = {
        "a.png": png(0), "a.json": json.dumps({"label": 1, "caption": "x"}).encode(),
        "b.png": png(1), "b.json": b'{"label": "owl"}', "b.txt": b"an owl at night",
        "c.png": png(2), "c.json": b'{"other": 1}', "c.txt": b"cat",
        "d.png": png(3), "d.cls": b"-1", "e.png": png(4), "f.png": png(5), "f.json": b"{",
        "g.png": png(6), "g.cls": b"n02",
    }  # fmt: skip
    table = tmp_path / "classes.txt"
    table.write_text("n00\tcat\nn01\tdog\nn02\towl\n")
    pieces = pieces_of(f"tar:{pack(tmp_path / 'x.tar', members)},classes={table}")
    data = pieces.parts[0].open()
    assert [sample.label for sample in data] == ["dog", "owl", "cat", None, None, None, "owl"]
    assert "label cannot be read" in data[5].image.info["konkyo"][0]


def test_a_key_is_a_name_up_to_its_first_dot(tmp_path: Path) -> None:
    members = {
        "x.seg.png": png(9), "x.png": png(0), "x.cls": b"0", "y.left.png": png(1), "y.right.png": png(2),
        "z.cls": b"1", "__index__.png": png(3), "._x.png": b"resource fork", "v1.2/x.PNG": png(4),
    }  # fmt: skip
    path = pack(tmp_path / "x.tar", members)
    data = open_tar(str(path), "x.tar", {})
    assert data.names == ("x.tar/x", "x.tar/y", "x.tar/z", "x.tar/v1.2/x")
    assert data[0].image.tobytes() == picture(0).tobytes()
    assert "y.left.png, one of 2 pictures" in data[1].image.info["konkyo"][0]
    assert data[3].image.tobytes() == picture(4).tobytes()
    with pytest.raises(ImageError, match=r"z has no picture; there is \.cls"):
        data[2]


@pytest.mark.parametrize("pattern", ["x-{0..2}.tar", "x-?.tar", "x-0.tar::x-[12].tar", "x-0.tar,x-{1,2}.tar"])
def test_patterns_name_tars(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(3):
        pack(tmp_path / f"x-{k}.tar", three(3 * k))
    monkeypatch.chdir(tmp_path)
    assert [part.name for part in pieces_of(f"tar:{pattern}").parts] == ["x-0.tar", "x-1.tar", "x-2.tar"]


def test_tars_that_are_missing_or_compressed_are_said(tmp_path: Path) -> None:
    pack(tmp_path / "x-0.tar", three(0))
    (tmp_path / "y.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(KonkyoError, match=r"there is no .*x-1\.tar, and 1 more \(1 are there\)"):
        pieces_of(f"tar:{tmp_path}/x-{{0..2}}.tar")
    with pytest.raises(KonkyoError, match="matches no file"):
        pieces_of(f"tar:{tmp_path}/z*.tar")
    with pytest.raises(KonkyoError, match="compressed"):
        pieces_of(f"tar:{tmp_path}/*.tar.gz")
    with pytest.raises(KonkyoError, match="unknown option of tar 'clases'"):
        pieces_of(f"tar:{tmp_path}/x-0.tar,clases=x")
    with pytest.raises(KonkyoError, match="at most 1000000 files"):
        pieces_of("tar:x-{0..99999999}.tar")
    with pytest.raises(KonkyoError, match="at most 1000000 are taken"):
        pieces_of("tar:x-{0..99999}-{0..99999}.tar")
    with pytest.raises(KonkyoError, match="a limit is of images that are known by name"):
        pieces_of(f"tar:{tmp_path}/x-0.tar", limit=2)


def test_tars_of_one_name_keep_apart(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        pack(tmp_path / folder / "x.tar", three(0))
    names = [name for name, _, _ in pixels(pieces_of(f"tar:{tmp_path}/*/x.tar"))]
    assert len(set(names)) == 6


def bomb(side: int) -> bytes:
    """A PNG of many pixels in few bytes: its rows are never made here."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")
    )


def test_hostile_members_are_errors_of_their_own(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for name in ("/etc/abs.png", "../up.png", "a/../../b.png", "good.png", "bomb.png", "text.png", "empty.png"):
            data = {"bomb.png": bomb(60_000), "text.png": b"no picture", "empty.png": b""}.get(name, png(0))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name, kind in (("sym.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("pipe.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else "good.png"
            file.addfile(info)
        data = png(1)
        info = tarfile.TarInfo("last.png")
        info.size = len(data)
        file.addfile(info, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    found = errors_of(tmp_path / "x.tar")
    assert {name for name, error in found.items() if not error} == {"good", "last"}
    for name in ("etc/abs", "_/up", "a/_/_/b"):
        assert "outside of the tar" in found[name]
    assert "too many pixels" in found["bomb"]
    assert "link" in found["sym"]
    assert "link" in found["hard"]
    assert "no regular file" in found["pipe"]
    assert "not an image" in found["text"]
    assert "empty" in found["empty"]
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


def test_sizes_that_cannot_be_are_not_read(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", three(0))
    data = bytearray(path.read_bytes())
    info = tarfile.TarInfo("huge.png")
    info.size = 2**40
    path.write_bytes(bytes(data).rstrip(b"\0") + b"\0" * 300)  # then aligned
    whole = path.read_bytes()
    end = -(-len(bytes(data).rstrip(b"\0")) // 512) * 512
    path.write_bytes(whole[:end].ljust(end, b"\0") + info.tobuf(tarfile.GNU_FORMAT) + b"few bytes")
    tracemalloc.start()
    found = errors_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [found[f"a/00{k}"] for k in range(3)] == ["", "", ""]
    assert found["huge"] == "huge.png is cut short: 9 bytes are there"
    assert "ends within its member huge.png" in found["(the rest)"]
    assert peak < 20e6


def test_a_long_name_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**31
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**31 + 512)
    pack(tmp_path / "y.tar", {"a.png": png(0)})
    with path.open("ab") as file:
        file.write((tmp_path / "y.tar").read_bytes())
    tracemalloc.start()
    found = errors_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) <= 2
    assert peak < 20e6


@pytest.mark.parametrize("where", ["within a picture", "between members", "within a header", "garbage"])
def test_a_truncated_tar_is_said(tmp_path: Path, where: str) -> None:
    path = pack(tmp_path / "x.tar", three(0))
    data = path.read_bytes()
    with tarfile.open(path) as file:
        last = file.getmember("a/002.png")
    cut = {
        "within a picture": last.offset_data + 100,
        "between members": last.offset,
        "within a header": last.offset + 99,
    }
    path.write_bytes(data[: cut.get(where, last.offset)] + (b"x" * 5000 if where == "garbage" else b""))
    found = errors_of(path)
    assert [found["a/000"], found["a/001"]] == ["", ""]
    assert "get the file again" in found["(the rest)"]
    assert where != "within a picture" or "cut short: 100 bytes are there" in found["a/002"]


def test_a_member_called_as_the_rest_does_not_hide_a_cut(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"(the rest).png": png(0), "b.png": png(1)})
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole + b"\0" * (-len(whole) % 512))  # without the blocks that end it
    found = errors_of(path)
    assert [found["(the rest)"], found["b"]] == ["", ""]
    assert "get the file again" in found["(the rest)#2"]


class Counted(set[str]):
    """It counts how often it is asked."""

    asked = 0

    def __contains__(self, name: object) -> bool:
        self.asked += 1
        return super().__contains__(name)


def test_many_keys_that_print_alike_are_told_apart_in_few_looks() -> None:
    members = [Member(f"{'./' * k}x.png", 0, 1) for k in range(300)]
    names = [entry.name for entry in grouped("t.tar", [*members, Member("x#3.png", 0, 1)])]
    assert names == ["t.tar/x", *(f"t.tar/x#{k}" for k in range(2, 301)), "t.tar/x#3#2"]
    taken, counts = Counted(), dict[str, int]()
    for _ in range(1000):
        taken.add(archives._free("x", taken, counts))
    assert len(taken) == 1000
    assert taken.asked < 2500


def test_two_tars_in_one_file_are_both_read(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", three(0))
    path.write_bytes(path.read_bytes() + pack(tmp_path / "y.tar", three(3)).read_bytes())
    assert errors_of(path) == dict.fromkeys((f"a/{k:03d}" for k in range(6)), "")


def test_opening_a_thousand_tars_reads_none_of_them(tmp_path: Path) -> None:
    for k in range(1000):
        with (tmp_path / f"x-{k:03d}.tar").open("wb") as file:
            file.truncate(2**30)  # takes no place on the disk
    tracemalloc.start()
    pieces = pieces_of(f"tar:{tmp_path}/x-{{000..999}}.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(pieces), pieces.images) == (1000, None)
    assert peak < 5e6
    assert len(pickle.dumps(pieces.parts[500])) < 1000


def test_the_digest_tells_other_data_apart(tmp_path: Path) -> None:
    pack(tmp_path / "x-0.tar", three(0))
    first = pieces_of(f"tar:{tmp_path}/x-*.tar").listing
    assert pieces_of(f"tar:{tmp_path}/x-0.tar").listing == first
    pack(tmp_path / "x-0.tar", three(0, more=b"0" * 20_000))
    second = pieces_of(f"tar:{tmp_path}/x-*.tar").listing
    pack(tmp_path / "x-1.tar", three(0))
    assert len({first, second, pieces_of(f"tar:{tmp_path}/x-*.tar").listing}) == 3


def names_in_process(data: Any, queue: Any) -> None:
    queue.put([(sample.name, sample.image.tobytes()) for sample in data])


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_samples_are_read_in_several_processes_at_once(tmp_path: Path, kind: str) -> None:
    if kind == "tar":
        source = f"tar:{pack(tmp_path / 'x.tar', three(0) | three(3))}"
    else:
        source = f"parquet:{hugging_face(tmp_path, 6)}"
    data = pieces_of(source).parts[0].open()
    want = [(sample.name, sample.image.tobytes()) for sample in data]
    assert [s.image.tobytes() for s in pickle.loads(pickle.dumps(data))] == [image for _, image in want]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=names_in_process, args=(data, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [want] * 3
    for process in processes:
        process.join()


# --- Parquet ----------------------------------------------------------------------------------------------------------


def hugging_face(folder: Path, count: int, **options: Any) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"id": datasets.Value("int64"), "species": datasets.ClassLabel(names=list(CLASSES)), "photo": datasets.Image()}
    )
    rows = {
        "id": list(range(count)),
        "species": [k % 3 for k in range(count)],
        "photo": [Image.fromarray(picture(k)) for k in range(count)],
    }
    path = folder / "train-00000-of-00001.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path), **options)
    return path


def bytes_table(path: Path, count: int, group: int = 10, **columns: Any) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.table({"img": [png(k) for k in range(count)], "cls": [k % 3 for k in range(count)], **columns})
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path


def test_a_table_of_hugging_face_gives_pictures_and_classes(tmp_path: Path) -> None:
    pieces = pieces_of(f"parquet:{hugging_face(tmp_path, 5, batch_size=2)}", size=4)
    assert (pieces.images, pieces.classes, len(pieces)) == (5, CLASSES, 2)
    assert [part.first for part in pieces.parts] == [0, 4]
    name = "train-00000-of-00001.parquet"
    want = [(f"{name}/{k}", CLASSES[k % 3], picture(k).tobytes()) for k in range(5)]
    assert pixels(pieces) == want


def test_bytes_and_columns_that_are_named(tmp_path: Path) -> None:
    path = bytes_table(tmp_path / "x.parquet", 7, 3, other=[png(90 + k) for k in range(7)], kind=["a"] * 7)
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    plain = pixels(pieces_of(f"parquet:{path},classes={tmp_path}/names.txt"))
    assert plain == [(f"x.parquet/{k}", CLASSES[k % 3], picture(k).tobytes()) for k in range(7)]
    named = pixels(pieces_of(f"parquet:{path},image=other,label=kind"))
    assert named == [(f"x.parquet/{k}", "a", picture(90 + k).tobytes()) for k in range(7)]
    for wrong, message in (("image=nothing", "unknown column"), ("image=kind", "image=COLUMN"), ("limt=1", "option")):
        with pytest.raises(KonkyoError, match=message):
            pieces_of(f"parquet:{path},{wrong}")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(KonkyoError, match=r"x\.parquet cannot be read"):
        pieces_of(f"parquet:{path}")


def test_rows_without_a_picture_are_errors_of_their_own(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (tmp_path / "secret.png").write_bytes(png(0))
    cells = [
        {"bytes": png(0), "path": "x.png"}, {"bytes": None, "path": str(tmp_path / "secret.png")}, None,
        {"bytes": b"no", "path": None}, {"bytes": bomb(60_000), "path": None}, {"bytes": png(5), "path": None},
    ]  # fmt: skip
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pyarrow.parquet.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "x.parquet")
    data = pieces_of(f"parquet:{tmp_path}/x.parquet").parts[0].open()
    for index, message in ((1, "holds no bytes"), (2, "no picture"), (3, "not an image"), (4, "too many pixels")):
        with pytest.raises(ImageError, match=rf"x\.parquet/{index}.*{message}"):
            data[index]
    assert [data[k].image.tobytes() for k in (5, 0)] == [picture(5).tobytes(), picture(0).tobytes()]


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    path = bytes_table(tmp_path / "x.parquet", 100, 30)
    pieces = pieces_of(f"parquet:{path}", size=60)
    assert [part.name for part in pieces.parts] == ["x.parquet/0-59", "x.parquet/60-99"]
    data = pieces.parts[1].open()
    order = np.random.default_rng(0).permutation(40).tolist()
    assert all(data[k].image.tobytes() == picture(60 + k).tobytes() for k in order)


def test_a_large_row_group_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    noise = np.random.default_rng(0)
    heavy = [png(k) + noise.bytes(200_000) for k in range(500)]  # readers of PNG stop at its end
    pyarrow.parquet.write_table(
        pa.table({"image": heavy}), tmp_path / "x.parquet", row_group_size=500, write_batch_size=8
    )
    del heavy
    pool, before = pa.default_memory_pool(), pa.total_allocated_bytes()
    data, most = pieces_of(f"parquet:{tmp_path}/x.parquet").parts[0].open(), 0
    for index in range(500):
        assert data[index].image.size == (20, 16)
        most = max(most, pool.bytes_allocated() - before)
    assert most < 30e6  # of 100 MB


# --- lists ------------------------------------------------------------------------------------------------------------


def folder_of(path: Path) -> Path:
    for k in range(6):
        file = path / CLASSES[k % 3] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(k))
    return path


def test_lists_name_images_and_labels(tmp_path: Path, memory: Any) -> None:
    folder_of(tmp_path / "photos")
    memory.pipe_file("/photos/9.png", png(9))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), ("photos/cat/0.png", "cat"), ("memory://photos/9.png", "")])
    (tmp_path / "list.txt").write_text("photos/dog/1.png\nphotos/gone.png\n")
    read = pixels(pieces_of(f"list:{tmp_path}/list.csv"))
    assert read == [
        ("photos/cat/0.png", "cat", picture(0).tobytes()),
        ("memory://photos/9.png", None, picture(9).tobytes()),
    ]
    data = pieces_of(f"list:{tmp_path}/list.txt").parts[0].open()
    assert data[0].image.tobytes() == picture(1).tobytes()
    with pytest.raises(ImageError, match="does not exist"):
        data[1]
    (tmp_path / "list.txt").write_text("a.png\na.png\n")
    with pytest.raises(KonkyoError, match="a name of its own"):
        pieces_of(f"list:{tmp_path}/list.txt")


@pytest.mark.parametrize("kind", ["folder", "files", "set", "list", "few"])
def test_the_digest_tells_replaced_pictures_and_other_labels_apart(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path / "photos")
    (tmp_path / "list.txt").write_text("\n".join(f"photos/{CLASSES[k % 3]}/{k}.png" for k in range(6)))
    sources = {"set": f"folder:{folder}", "list": f"list:{tmp_path}/list.txt", "files": sorted(folder.rglob("*.png"))}

    def now() -> str:
        return pieces_of(sources.get(kind, folder), limit=6 if kind == "few" else None).listing

    first = now()
    assert now() == first
    (folder / "dog" / "4.png").write_bytes(png(4) + b"more")
    assert now() != first
    (folder / "dog" / "4.png").write_bytes(png(4))
    assert now() == first
    (folder / "dog" / "4.png").unlink()
    if kind == "list":
        assert now() != first


def test_the_digest_tells_other_labels_apart(tmp_path: Path) -> None:
    named = [Sample(name, Image.new("RGB", (8, 8))) for name in "ab"]
    data = [Samples(("a", "b"), named.__getitem__, labels=labels) for labels in ((), ("x", "y"), ("x", "z"))]
    assert len({pieces_of(each).listing for each in data}) == 3


def test_a_piece_of_files_has_its_own_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos")
    pieces = pieces_of(str(folder), size=2)
    assert [name for name, _, _ in pixels(pieces)] == [
        f"{CLASSES[k // 2]}/{k // 2 + 3 * (k % 2)}.png" for k in range(6)
    ]
    for other, part in enumerate(pieces.parts):
        sent = pickle.dumps(part)
        assert [f"{name}/".encode() in sent for name in CLASSES] == [k == other for k in range(3)]


# --- addresses --------------------------------------------------------------------------------------------------------


def test_a_folder_at_an_address_is_as_one_here(tmp_path: Path, memory: Any) -> None:
    folder_of(tmp_path / "photos")
    memory.put(str(tmp_path / "photos"), "/bucket/photos", recursive=True)
    memory.pipe_file("/bucket/photos/.hidden/x.png", png(0))
    memory.pipe_file("/bucket/photos/readme.txt", b"text")
    here = pieces_of(str(tmp_path / "photos"), size=4)
    for address in ("memory://bucket/photos/", "memory://bucket/photos/**/*.png"):
        there = pieces_of(address, size=4)
        assert [part.name for part in there.parts] == [part.name for part in here.parts]
        assert pixels(there) == pixels(here)
        assert there.images == 6
    few = pieces_of("memory://bucket/photos/", limit=3, seed=5, size=2)
    assert [name for name, _, _ in pixels(few)] == [
        name for name, _, _ in pixels(pieces_of(str(tmp_path / "photos"), limit=3, seed=5, size=2))
    ]
    assert len(pickle.dumps(there.parts[1])) < len(pickle.dumps(there.parts[0]))  # each has its own images alone
    one = pieces_of("memory://bucket/photos/cat/0.png")
    assert [name for name, _, _ in pixels(one)] == ["0.png"]
    local = pieces_of((tmp_path / "photos").as_uri() + "/", size=4)
    assert pixels(local) == pixels(here)


def test_archives_at_an_address_are_as_ones_here(tmp_path: Path, memory: Any) -> None:
    pack(tmp_path / "x-0.tar", three(0))
    pack(tmp_path / "x-1.tar", three(3))
    table = bytes_table(tmp_path / "x.parquet", 20, 6)
    memory.put(str(tmp_path), "/bucket", recursive=True)
    for pattern in ("x-{0..1}.tar", "x-*.tar"):
        there = pieces_of(f"tar:memory://bucket/{pattern}")
        assert pixels(there) == pixels(pieces_of(f"tar:{tmp_path}/{pattern}"))
    first = there.listing
    memory.pipe_file("/bucket/x-1.tar", b"\0" * 20480)
    assert pieces_of("tar:memory://bucket/x-*.tar").listing != first
    assert pixels(pieces_of("parquet:memory://bucket/x.parquet")) == pixels(pieces_of(f"parquet:{table}"))
    with pytest.raises(KonkyoError, match=r"there is no memory://bucket/x-2\.tar"):
        pieces_of("tar:memory://bucket/x-{0..2}.tar")


def deleted_files() -> int:
    """How many files without a name this process has open."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum("deleted" in str(link.readlink()) for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists open files of Linux")
def test_the_copy_of_a_tar_goes_with_its_samples(tmp_path: Path, memory: Any) -> None:
    memory.pipe_file("/bucket/x.tar", pack(tmp_path / "x.tar", three(0)).read_bytes())
    before = deleted_files()
    data = pieces_of("tar:memory://bucket/x.tar").parts[0].open()
    assert data[2].image.tobytes() == picture(2).tobytes()
    assert deleted_files() == before + 1
    other = pickle.loads(pickle.dumps(data))
    assert other[2].image.tobytes() == picture(2).tobytes()
    del data, other
    assert deleted_files() == before


class Failing:
    """It fails some times, and then does not."""

    def __init__(self, times: int, error: type[Exception], result: bytes = b"") -> None:
        self.times, self.error, self.result, self.calls = times, error, result, 0

    def __call__(self, *_: object, **__: object) -> bytes:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error("the store is busy")
        return self.result


@pytest.mark.parametrize(
    ("times", "error", "calls"),
    [(3, OSError, 4), (9, OSError, 4), (9, FileNotFoundError, 1), (9, PermissionError, 1), (2, TimeoutError, 3)],
)
def test_reading_is_tried_again(
    memory: Any, monkeypatch: pytest.MonkeyPatch, no_wait: None, times: int, error: type[Exception], calls: int
) -> None:
    memory.pipe_file("/bucket/a.png", png(0))
    data = pieces_of("memory://bucket/").parts[0].open()
    failing = Failing(times, error, png(0))
    monkeypatch.setattr(type(memory), "cat_file", failing)
    if times < 4:
        assert data[0].image.tobytes() == picture(0).tobytes()
    else:
        with pytest.raises(ImageError, match=r"memory://bucket/a\.png"):
            data[0]
    assert failing.calls == calls


def test_a_table_goes_on_after_a_failed_read(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, no_wait: None
) -> None:
    memory.pipe_file("/bucket/x.parquet", bytes_table(tmp_path / "x.parquet", 60, 20).read_bytes())
    data = pieces_of("parquet:memory://bucket/x.parquet", size=60).parts[0].open()
    kind, failing, calls = type(memory.open("/bucket/x.parquet")), {3, 4}, 0
    read = kind.read

    def sometimes(self: Any, *arguments: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls in failing:
            raise OSError("the store is busy")
        return read(self, *arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(kind, "read", sometimes, raising=False)
    assert [s.image.tobytes() for s in data] == [picture(k).tobytes() for k in range(60)]
    assert calls > 4
    failing |= set(range(calls, calls + 10_000))
    with pytest.raises(KonkyoError, match=r"memory://bucket/x\.parquet cannot be read: .*busy"):
        pieces_of("parquet:memory://bucket/x.parquet").parts[0].open()[0]


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = pytest.importorskip("fsspec.registry")
    entry = {"class": "no_such_library.FileSystem", "err": "Install it"}
    monkeypatch.setitem(registry._registry, "memory", registry._registry.get("memory"))
    monkeypatch.setattr(registry, "_registry", {})
    monkeypatch.setattr(registry, "known_implementations", {"s3": entry})
    with pytest.raises(KonkyoError, match=r"s3:// is read with a library that is not here.*pip install s3fs"):
        pieces_of("s3://bucket/photos/")
    with pytest.raises(KonkyoError, match="no address that fsspec knows"):
        pieces_of("tar:nothing://bucket/x.tar")


class BusyError(Exception):
    """It stands for errors of stores' own libraries, which are no OSError."""

    def __init__(self, message: str, status: int = 503) -> None:
        super().__init__(message)
        self.status = status


@pytest.fixture
def unsteady() -> Iterator[Any]:
    """A store whose every request fails as often as its list of errors is long."""
    fsspec = pytest.importorskip("fsspec")

    class Unsteady(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "unsteady"
        files: dict[str, bytes] = {}  # noqa: RUF012 - there is one store
        errors: list[Exception] = []  # noqa: RUF012
        asked = 0

        def answer(self) -> None:
            type(self).asked += 1
            if self.errors:
                raise self.errors.pop(0)

        def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
            self.answer()
            path = self._strip_protocol(path).rstrip("/")
            names = [name for name in self.files if name == path or name.rpartition("/")[0] == path]
            infos = [{"name": name, "size": len(self.files[name]), "type": "file"} for name in names]
            return infos if detail else names

        def _open(self, path: str, *_: Any, **__: Any) -> io.BytesIO:
            self.answer()
            return io.BytesIO(self.files[self._strip_protocol(path)])

    fsspec.register_implementation("unsteady", Unsteady, clobber=True)
    yield Unsteady
    pytest.importorskip("fsspec.registry")._registry.pop("unsteady")


@pytest.mark.parametrize("kind", ["tar:unsteady://b/x.tar", "parquet:unsteady://b/x.parquet", "unsteady://b/", "list:"])
def test_errors_of_the_stores_own_classes_are_tried_again(
    tmp_path: Path, unsteady: Any, no_wait: None, kind: str
) -> None:
    (tmp_path / "list.txt").write_text("unsteady://b/0.png\nunsteady://b/1.png")
    source = f"list:{tmp_path}/list.txt" if kind == "list:" else kind
    unsteady.files["b/x.tar"] = pack(tmp_path / "x.tar", three(0)).read_bytes()
    unsteady.files["b/x.parquet"] = bytes_table(tmp_path / "x.parquet", 3).read_bytes()
    unsteady.files |= {f"b/{k}.png": png(k) for k in range(3)}
    busy = "503: GET https://me:pass@host/x?X-Signature=SECRET (/x?X-Signature=SECRET)"
    unsteady.errors[:] = [BusyError(busy), BusyError(busy)]
    piece = pieces_of(source).parts[0]
    unsteady.errors[:] = [BusyError(busy), BusyError(busy)]
    assert piece.open()[1].image.tobytes() == picture(1).tobytes()
    assert not unsteady.errors
    unsteady.asked, unsteady.errors[:] = 0, [BusyError(busy)] * 99
    with pytest.raises(KonkyoError, match=r"unsteady://b/\S+ cannot be read: 503: GET https://host/x \(/x$"):
        piece.open()[0]
    assert unsteady.asked == 4
    unsteady.asked, unsteady.errors[:] = 0, [BusyError("not allowed", 403)] * 99
    with pytest.raises(KonkyoError, match=r"unsteady://b/\S+ cannot be read: not allowed"):
        piece.open()[0]
    assert unsteady.asked == 1
    unsteady.errors[:] = [MemoryError()]
    with pytest.raises(MemoryError):
        piece.open()[0]
    if kind != "list:":
        unsteady.errors[:] = [BusyError(busy)] * 99
        with pytest.raises(KonkyoError, match=r"unsteady://b\S* cannot be read: 503: GET https://host/x \(/x$"):
            pieces_of(source)


def test_a_tar_that_is_gone_is_an_error_of_the_image(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", three(0))
    data = open_tar(str(path), "x.tar", {})
    path.unlink()
    with pytest.raises(ImageError, match=r"x\.tar cannot be read: .*No such file"):
        data[0]


def test_passwords_and_signatures_are_not_kept(memory: Any) -> None:
    assert stores.public("https://me:secret@host/x.tar?X-Signature=y") == "https://host/x.tar"
    one, other = (stores.Stored(f"https://host/x.tar?signature={k}", 10, "e") for k in "ab")
    assert one.identity == other.identity


@pytest.mark.parametrize(
    ("where", "want"),
    [
        ("x.tar::http://h/y.tar?sig=SECRET", "x.tar::http://h/y.tar"),
        ("x.tar,https://me:SECRET@h/y.tar", "x.tar,https://h/y.tar"),
        ("https://me:SEC@RET@host/a?SECRET", "https://host/a"),
        ("HTTP://h/a.tar?SECRET::s3://b/c-?.tar::https://h/{a,b}.tar#SECRET", "HTTP://h/a.tar::s3://b/c-?.tar::https://h/{a,b}.tar"),
        ("zip://*.png::https://me:SECRET@h/a.zip?sig=SECRET", "zip://*.png::https://h/a.zip"),
        ("s3://b/x.tar?X-Amz-Signature=SECRET::y.tar", "s3://b/x.tar::y.tar"),
        ("http://h/a.png?rect=0,10&s=SECRET,s3://k:SECRET@b/c.tar", "http://h/a.png,s3://b/c.tar"),
        ("s3://b/x?versionId=7", "s3://b/x?versionId=7"),
        ("my@photos/what?x=1.tar", "my@photos/what?x=1.tar"),
    ],
)  # fmt: skip
def test_every_part_of_a_pattern_is_without_secrets(where: str, want: str) -> None:
    assert stores.public(where) == want


def test_sources_and_words_of_stores_are_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    path = pack(tmp_path / "x.tar", three(0))
    table = bytes_table(tmp_path / "x.parquet", 3)
    web = "http://me:SEC@RET@h/y?sig=SECRET"
    listed = stores._asked_for
    monkeypatch.setattr(stores, "_asked_for", lambda address: [stores.Stored(address, 9)])
    assert pieces_of(f"tar:{path}::{web}").source == f"tar:{path}::http://h/y"
    monkeypatch.setattr(stores, "opened", lambda _: table.open("rb"))
    assert pieces_of(f"parquet:{web},image=img").source == "parquet:http://h/y,image=img"
    monkeypatch.setattr(stores, "_asked_for", listed)
    said = f"{web} refused (and so did <https://k:SECRET@g/z?SECRET>, /y?sig=SECRET): SE"
    error = stores.unanswered(web, OSError(said))
    assert str(error) == "http://h/y cannot be read: http://h/y refused (and so did <https://g/z>, /y SE"


# --- with the rest ----------------------------------------------------------------------------------------------------


def model() -> konkyo.Model:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(*body, nn.Linear(4, 3)).eval()
    plain = konkyo.Preprocess(resize=None, crop=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    return konkyo.Model(network, preprocess=plain, classes=CLASSES)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_gives_the_same_rows_of_a_folder_and_of_archives(tmp_path: Path, memory: Any, workers: int) -> None:
    pytest.importorskip("pyarrow")
    from konkyo.runs.run import run

    folder = folder_of(tmp_path / "photos")
    files = sorted(folder.rglob("*.png"))
    members: dict[str, bytes] = {}
    for file in files:
        key = file.relative_to(folder).as_posix()
        members |= {key: file.read_bytes(), key.replace(".png", ".cls"): file.parent.name.encode()}
    memory.pipe_file("/bucket/x.tar", pack(tmp_path / "x.tar", members).read_bytes())
    for file in files:
        memory.pipe_file(f"/bucket/photos/{file.relative_to(folder).as_posix()}", file.read_bytes())
    kinds = (str(folder), f"tar:{tmp_path}/x.tar", "tar:memory://bucket/x.tar", "memory://bucket/photos/")
    rows = []
    for number, data in enumerate(kinds):
        records = run(model(), data, tmp_path / f"out{number}", batch=4, workers=workers, methods=["grad_cam"])
        assert (records.complete, records.errors, records.images) == (True, 0, 6)
        listed = list(records.rows())
        rows.append([{**row, "image": row["image"].removeprefix("x.tar/").removesuffix(".png")} for row in listed])
    assert rows[0][0]["true_label"] == "cat"
    assert all(other == rows[0] for other in rows[1:])


def test_a_run_keeps_what_a_damaged_tar_still_has(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from konkyo.runs.run import run

    path = pack(tmp_path / "x.tar", three(0) | {"a/bad.png": b"no"} | three(3))
    path.write_bytes(path.read_bytes()[:-9000])
    records = run(model(), f"tar:{path}", tmp_path / "out", batch=4, workers=0)
    failed = {row["image"]: row["error"] for row in records.rows() if row["error"]}
    assert {"x.tar/a/bad", "x.tar/(the rest)"} <= failed.keys()
    assert records.images > records.errors
    assert records.complete


@pytest.mark.parametrize("kind", ["tar", "parquet", "list", "address"])
def test_data_sets_are_named_as_pieces_are(tmp_path: Path, memory: Any, kind: str) -> None:
    if kind == "tar":
        pack(tmp_path / "x-0.tar", three(0))
        pack(tmp_path / "x-1.tar", three(3))
        source = f"tar:{tmp_path}/x-*.tar"
    elif kind == "parquet":
        source = f"parquet:{bytes_table(tmp_path / 'x.parquet', 6, 2)}"
    else:
        folder_of(tmp_path / "photos")
        files = sorted((tmp_path / "photos").rglob("*.png"), key=lambda file: file.stem)
        for file in files:
            memory.pipe_file(f"/photos/{file.name}", file.read_bytes())
        (tmp_path / "list.txt").write_text("\n".join(f"photos/{CLASSES[k % 3]}/{k}.png" for k in range(6)))
        source = f"list:{tmp_path}/list.txt" if kind == "list" else "memory://photos/"
    data = samples(source)
    assert [sample.image.tobytes() for sample in data] == [picture(k).tobytes() for k in range(6)]
    assert [sample.name for sample in data] == list(data.names)
    few = samples(source, limit=2, seed=1)
    assert set(few.names) < set(data.names)
    assert len(pickle.loads(pickle.dumps(few))) == 2


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_a_tar_is_evaluated(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", three(0) | three(3))
    result = konkyo.evaluate(model(), f"tar:{tmp_path}/x.tar", methods=["grad_cam"], metrics=["deletion"])
    assert "x.tar" in repr(result) or len(result.table()) >= 1

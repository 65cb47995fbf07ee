"""Files at addresses of fsspec (s3://, gs://, az://, http://, memory://) and on this machine: listed, and read."""

from __future__ import annotations

import glob
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from konkyo.data.images import natural
from konkyo.errors import KonkyoError

WAITS = (0.5, 2.0, 8.0)
"""Seconds before a failed read of an address is tried again: so often it is tried again."""
MOST = 1_000_000
"""Braces of one pattern may name so many files."""
THREADS = 16
"""So many addresses are asked for at once, where each takes a request of its own."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_APART = re.compile(rf"(::|,(?={_ADDRESS.pattern}))", re.IGNORECASE)
"""What stands between the addresses of one text."""
_USER = re.compile(r"(?<=://)[^/?#]*@")
_WEB_QUERY = re.compile(r"(?<=http)(s?://[^?#]*)[?#].*", re.IGNORECASE | re.DOTALL)
_QUERY = re.compile(r"\?(?!versionId=)[\w.%~-]+=.*", re.DOTALL)
_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_REFUSALS = {"401", "403", "404", "410"}
"""Answers of the web that another try does not change."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_MARKS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "versionId", "generation")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Stored:
    """A stored file is what a listing says of it: nothing of it has been read."""

    where: str
    """Its address, or its path on this machine."""
    size: int | None
    """In bytes, where the listing says so."""
    mark: str = ""
    """What the store says that changes with the bytes, as an ETag."""

    @property
    def base(self) -> str:
        """Returns its name within its folder."""
        return PurePosixPath(public(self.where)).name

    @property
    def identity(self) -> str:
        """Returns what a digest of a listing takes of it."""
        return f"{public(self.where) if is_address(self.where) else self.base} {self.size} {self.mark}"


def is_address(text: str) -> bool:
    """Tells whether a text is an address, as s3://bucket/key, and no path."""
    return _ADDRESS.match(text) is not None


def public(where: str) -> str:
    """Returns addresses without what is secret in them: passwords, and the queries of the web, as signatures.

    `where`: an address, or several that "::" or commas join. What a comma parts from a query counts as of the query.

    >>> public("https://me:sec@ret@host/a.tar?signature=x"), public("a.tar::http://h/b.tar?key=x::s3://bucket/c-?.tar")
    ('https://host/a.tar', 'a.tar::http://h/b.tar::s3://bucket/c-?.tar')
    """
    if "://" not in where:
        return where
    parts = _APART.split(_USER.sub("", where))
    return "".join(_QUERY.sub("", _WEB_QUERY.sub(r"\1", part)) if "://" in part else part for part in parts)


def _without_secrets(reason: str, address: str) -> str:
    """Returns what a store says of an address, with the public forms of it and of all others that are in the words.

    >>> _without_secrets("GET 'http://h/b?key=x' (/b?key=x) failed", "http://me:secret@h/b?key=x")
    "GET 'http://h/b' (/b failed"
    """
    reason = reason.replace(address, public(address))
    return re.sub(r"[^\s'\"<>]+", lambda word: _QUERY.sub("", public(word[0])), reason)


def files_of(patterns: str, kind: str) -> list[Stored]:
    """Returns the files that patterns name, in their order, those of one pattern in natural order; each once.

    Patterns are joined by "::" or commas: paths or addresses, with ranges ({000..099}), choices ({train,val}), * and
    **. KonkyoError: a file that a range names is not there, or a pattern that matches nothing. `kind`: for the error.
    """
    files: dict[str, Stored] = {}
    for pattern in _parted(patterns):
        names = list(_expanded(pattern))
        plain = [name for name in names if not _is_pattern(name)]
        listed = {file.where: file for file in _named(plain)}
        if missing := [name for name in plain if name not in listed]:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise KonkyoError(
                f"{kind}{public(pattern)}: there is no {public(missing[0])}{more} ({len(listed)} are there)"
            )
        for name in names:
            matches = [listed[name]] if name in listed else _matching(name)
            if not matches:
                raise KonkyoError(f"{kind}{public(pattern)} matches no file")
            for file in matches:
                files.setdefault(file.where, file)
    if not files:
        raise KonkyoError(f"a file or a pattern was expected, as in {kind}photos-{{000..099}}; got none")
    return list(files.values())


def below(address: str) -> tuple[str, list[Stored]]:
    """Returns (the folder, all files in an address's folder and below, or that a pattern matches), in natural order.

    The public forms of the files begin with the folder. KonkyoError: nothing is there, or the store cannot be asked.
    """
    system, path = _system(address)
    if "*" in path or "?" in path or "[" in path:
        files = _matching(address)
        fixed = re.split(r"[*?\[]", public(address))[0]
        return fixed[: fixed.rindex("/") + 1], files
    listed = _answer(address, lambda: system.find(path, detail=True))
    files = sorted((_stored(system, info) for info in listed.values()), key=_order)
    if not files:
        raise KonkyoError(f"{public(address)} holds no files")
    whole = len(files) == 1 and files[0].where.rstrip("/") == _whole(system, path).rstrip("/")
    base = public(_whole(system, path)).rstrip("/") + "/"
    return (base.rstrip("/").rpartition("/")[0] + "/" if whole else base), files


def read(where: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Returns the bytes of a file, or those from `start` to `stop`. OSError, KonkyoError: as of `retried`."""
    if not is_address(where):
        with Path(where).expanduser().open("rb") as file:
            file.seek(start or 0)
            return file.read(-1 if stop is None else stop - (start or 0))
    system, path = _system(where)
    data: bytes = retried(where, lambda: system.cat_file(path, start=start, end=stop))
    return data


def fetch(where: str, target: Any) -> None:
    """Writes a file at an address to an open one, from its beginning. OSError, KonkyoError: as of `retried`."""
    system, path = _system(where)

    def copy() -> None:
        target.seek(0)
        target.truncate()
        with system.open(path, "rb", block_size=2**23, cache_type="readahead") as source:
            while block := source.read(2**23):
                target.write(block)

    retried(where, copy)


def opened(where: str) -> Any:
    """Returns an open file, at an address one that reads the parts that are asked for."""
    if not is_address(where):
        return Path(where).expanduser().open("rb")
    system, path = _system(where)
    return retried(where, lambda: system.open(path, "rb", block_size=2**22, cache_type="readahead"))


def retried(where: str, action: Callable[[], _Result], final: tuple[type[Exception], ...] = ()) -> _Result:
    """Returns what an action on a file at an address returns, and tries it again after each of WAITS.

    Libraries of stores have errors of their own classes, so all are tried again but those that stay: that the file is
    not there or not allowed, and `final` ones. FileNotFoundError: it is not there. KonkyoError: any other reason.
    """
    waits = iter(WAITS)
    while True:
        try:
            return action()
        except (FileNotFoundError, KonkyoError, MemoryError):
            raise
        except Exception as error:
            wait = None if isinstance(error, (*_FINAL, *final)) or _is_refusal(error) else next(waits, None)
            if wait is None:
                raise unanswered(where, error) from error
        time.sleep(wait)


def _is_refusal(error: Exception) -> bool:
    """Tells whether an error has the number of an answer of the web that is final."""
    return any(str(getattr(error, name, "")) in _REFUSALS for name in ("status", "code", "status_code"))


def mapped(function: Callable[[str], _Result], addresses: Sequence[str]) -> list[_Result]:
    """Returns what a function returns of every address, several asked at once; files of this machine in turn."""
    if not any(map(is_address, addresses)):
        return [function(address) for address in addresses]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, addresses))


# --- names ------------------------------------------------------------------------------------------------------------


def _parted(patterns: str) -> list[str]:
    """Returns the patterns that "::" and commas join; commas in braces are choices.

    >>> _parted("a-{0..3}.tar::b/{x,y}.tar,c.tar")
    ['a-{0..3}.tar', 'b/{x,y}.tar', 'c.tar']
    """
    return [part.strip() for part in re.split(r"::|,(?![^{}]*\})", patterns) if part.strip()]


def _expanded(pattern: str) -> Iterator[str]:
    """Yields the names that braces stand for. KonkyoError: more than MOST.

    >>> list(_expanded("{a,b}-{08..10}.tar"))
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    pieces = _BRACES.split(pattern)  # every second one is what stands in braces
    names = [pieces[0]]
    for inner, after in zip(pieces[1::2], pieces[2::2], strict=True):
        choices = _choices(inner)
        if len(names) * len(choices) > MOST:
            raise KonkyoError(f"{public(pattern)} names {len(names) * len(choices)} files; at most {MOST} are taken")
        names = [name + choice + after for name in names for choice in choices]
    yield from names


def _choices(inner: str) -> list[str]:
    span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inner)
    if span is None:
        return inner.split(",") if "," in inner else [f"{{{inner}}}"]
    low, high = int(span[1]), int(span[2])
    if not 0 <= high - low < MOST:
        raise KonkyoError(f"a range {{FIRST..LAST}} of at most {MOST} files was expected; got {{{inner}}}")
    width = len(span[1]) if span[1].startswith("0") or len(span[1]) == len(span[2]) else 0
    return [str(number).zfill(width) for number in range(low, high + 1)]


def _is_pattern(name: str) -> bool:
    if name.lower().startswith("http"):
        return False  # the web has no listing; "?" begins a query
    return any(sign in name for sign in "*?[") and (is_address(name) or not Path(name).expanduser().exists())


def _order(file: Stored) -> Any:
    return natural(Path(file.where))


# --- listing ----------------------------------------------------------------------------------------------------------


def _named(names: Sequence[str]) -> Iterator[Stored]:
    """Yields those of the files that are there: of a store a folder is listed once, of the web each is asked for."""
    local = [name for name in names if not is_address(name)]
    web = [name for name in names if name.lower().startswith("http")]
    for name in local:
        path = Path(name).expanduser()
        if path.is_file():
            yield Stored(name, path.stat().st_size)
    yield from chain.from_iterable(mapped(_asked_for, web))
    kept = set(names)
    folders = dict.fromkeys(name.rpartition("/")[0] for name in names if name not in {*local, *web})
    for folder in folders:
        system, key = _system(folder + "/")
        try:
            infos = retried(folder, partial(system.ls, key, detail=True))
        except FileNotFoundError:
            continue
        for info in infos:
            name = f"{folder}/{PurePosixPath(info['name']).name}"
            if info.get("type") == "file" and name in kept:
                yield _stored(system, info, name)


def _asked_for(address: str) -> list[Stored]:
    system, path = _system(address)
    try:
        return [_stored(system, retried(address, lambda: system.info(path)), address)]
    except FileNotFoundError:
        return []


def _matching(pattern: str) -> list[Stored]:
    """Returns the files that a pattern matches, in natural order."""
    if is_address(pattern):
        system, path = _system(pattern)
        infos = _answer(pattern, lambda: system.glob(path, detail=True)).values()
        return sorted((_stored(system, i) for i in infos if i.get("type") == "file"), key=_order)
    names = glob.glob(str(Path(pattern).expanduser()), recursive=True)  # noqa: PTH207 - takes absolute patterns
    return sorted((Stored(name, Path(name).stat().st_size) for name in names if Path(name).is_file()), key=_order)


def _stored(system: Any, info: dict[str, Any], where: str = "") -> Stored:
    mark = next((str(info[name]).strip('"') for name in _MARKS if info.get(name)), "")
    return Stored(where or _whole(system, info["name"]), info.get("size"), mark)


def _whole(system: Any, path: str) -> str:
    """Returns the address of a path of a store: with one / where a store of memory begins its paths with one, too."""
    address: str = system.unstrip_protocol(path)
    return re.sub(r"^memory:/+", "memory://", address)


def _answer(address: str, action: Callable[[], Any]) -> Any:
    """Returns what a store answers. KonkyoError: as of `retried`, or that nothing is there."""
    try:
        return retried(address, action)
    except FileNotFoundError as error:
        raise unanswered(address, error) from error


def unanswered(address: str, error: Exception) -> KonkyoError:
    """Returns the error for a file that cannot be read, without secrets; one of konkyo's stays what it is."""
    if isinstance(error, KonkyoError):
        return error
    reason = _without_secrets(" ".join(str(error).split()), address) or type(error).__name__
    return KonkyoError(f"{public(address)} cannot be read: {reason[:300]}")


def _system(address: str) -> tuple[Any, str]:
    """Returns (the file system, the path in it). KonkyoError: no such kind of address, or its library is missing."""
    try:
        import fsspec
    except ImportError as error:
        raise KonkyoError(f"addresses are read with fsspec: pip install fsspec (for {public(address)})") from error
    try:
        system, path = fsspec.core.url_to_fs(address)  # kept by fsspec, for this process
    except ImportError as error:
        protocol = address.partition("://")[0]
        raise KonkyoError(
            f"{protocol}:// is read with a library that is not here ({error}): pip install {_library(protocol, error)}"
        ) from error
    except ValueError as error:
        reason = _without_secrets(str(error), address)
        raise KonkyoError(f"{public(address)} is no address that fsspec knows: {reason}") from error
    except Exception as error:
        raise unanswered(address, error) from error
    return system, path


def _library(protocol: str, error: ImportError) -> str:
    """Returns what to install: the word that fsspec names, or the name of the protocol's usual library."""
    usual = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
    http = {"http": "aiohttp", "https": "aiohttp"}
    return (usual | http).get(protocol.lower(), "") or str(error.name or f"fsspec[{protocol}]")


def marks(files: Iterable[Stored]) -> list[str]:
    """Returns what identifies files, for a digest."""
    return [file.identity for file in files]

"""The one family of errors and warnings: each names what was expected, what came, and what is on offer."""

from __future__ import annotations

import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher


class KonkyoError(Exception):
    """This is raised where the caller can mend something; the message says what, and how."""


class ImageError(KonkyoError):
    """This is raised of an image that cannot be used, or lacks what is asked for; others can be explained."""


class NotApplicable(KonkyoError):  # noqa: N818 - it is said of a method: "cam: not applicable to this model"
    """This is raised of a method that cannot be defined for this model or layer; others can."""


class NetworkError(KonkyoError):
    """This is raised where a network failed in its forward or backward; the cause is kept (`__cause__`)."""


class Diverged(KonkyoError):  # noqa: N818 - it is said of a training
    """This is raised of a training whose loss is no number any more; its epochs before are kept."""


class NoSuchRow(KonkyoError, IndexError):  # noqa: N818 - it says what there is not
    """This is raised of a row that a result does not have; the message says how many there are."""


class NoSuchName(KonkyoError, KeyError):  # noqa: N818 - it says what there is not
    """This is raised of a name that no row of a result has; the message says which there are."""

    __str__ = Exception.__str__  # a KeyError would show the message in quotes


class KonkyoWarning(UserWarning):
    """This warns of a result that exists but should not be trusted as it is; the message says why."""


_NEAR, _ASIDE = 0.6, 0.1
"""Names are near from this likeness on; and how far below the nearest one others may be."""


def unknown(kind: str, name: object, offer: Iterable[str]) -> KonkyoError:
    """The error for a name that is not on offer, with the near ones first.

    >>> print(unknown("method", "gradcam", ["grad_cam", "score_cam"]))
    unknown method 'gradcam'; did you mean 'grad_cam'? On offer: grad_cam, score_cam
    """
    names = list(offer)
    shown = ", ".join(names[:60]) + (f", ... ({len(names)} in all)" if len(names) > 60 else "")
    return KonkyoError(f"unknown {kind} {name!r}{did_you_mean(str(name), names)} On offer: {shown}")


def did_you_mean(name: str, offer: Sequence[str]) -> str:
    """Returns the question after the near ones of the names on offer, as it follows a mistaken name; "." if none is.

    Near is what shares most letters in their order, and hardly less than the nearest does. Case does not matter.

    >>> did_you_mean("Resnet5", ["resnet50", "regnet"]), did_you_mean("lime", ["rise", "saliency"])
    ("; did you mean 'resnet50'?", '.')
    """
    likeness = {other: SequenceMatcher(None, other.lower(), name.lower()).ratio() for other in offer}
    highest = max(likeness.values(), default=0.0)
    near = [other for other in sorted(likeness, key=lambda n: -likeness[n]) if likeness[other] >= highest - _ASIDE]
    return f"; did you mean {' or '.join(map(repr, near[:3]))}?" if highest >= _NEAR else "."


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, or the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def install_hint(extra: str) -> str:
    """Returns the pip command that installs the libraries of an extra of konkyo.

    It names the libraries themselves, so it works however konkyo was installed, and before it is published.
    """
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires("konkyo") or []
    except PackageNotFoundError:  # run from a source folder that was never installed
        lines = []
    marker = re.compile(rf"""\bextra\s*==\s*["']{re.escape(extra)}["']""")
    libraries = [f'"{line.partition(";")[0].strip()}"' for line in lines if marker.search(line)]
    return "pip install " + (" ".join(libraries) or f'".[{extra}]" (in the folder with konkyo\'s pyproject.toml)')


class _Silence(threading.local):
    """This tells whether a thread silences konkyo's warnings, and how often."""

    depth = 0


_SILENCE = _Silence()


@contextmanager
def silenced() -> Iterator[None]:
    """Within the context this thread gets no `KonkyoWarning`; `warnings.catch_warnings` would change all threads."""
    _SILENCE.depth += 1
    try:
        yield
    finally:
        _SILENCE.depth -= 1


def warn(message: str) -> None:
    """Warns with a `KonkyoWarning` that points at the caller's line, however deep in the package it comes from."""
    if _SILENCE.depth:
        return
    level = 1
    while sys._getframe(level).f_globals.get("__name__", "").partition(".")[0] == "konkyo":
        level += 1
    warnings.warn(message, KonkyoWarning, stacklevel=level + 1)

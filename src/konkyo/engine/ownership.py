"""Ownership: one thread at a time works on a network, and on what a process has only one of.

Nothing is stored on the modules, so that they can be copied and pickled. Networks that share a module exclude each
other; others do not. An interrupt between any two of the steps here leaves nothing that another thread waits for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

from konkyo.errors import KonkyoError

RANDOM_STATE = object()
"""The random generators of the process, which all networks draw from."""
ATTENTION_KERNELS = object()
"""The kernels that attention may use, a setting of the whole process."""

_LOCK = threading.Lock()
_CLAIMS: list[Claim] = []
"""The claims that are held."""
_WAITING: dict[int, int] = {}
"""A thread that waits -> the thread whose claim it waits for."""
_PATIENCE = 0.05
"""Seconds after which a waiting thread looks again, should nobody have woken it."""


class Claim:
    """A claim on things (modules, say) keeps other threads off them from `hold` to `release`.

    The thread that holds it may claim the same things again.
    """

    def __init__(self, things: Iterable[object]) -> None:
        """Prepares the claim; it is not held yet."""
        self.thread = threading.get_ident()
        self._things = list(things)  # alive, so that no other thing gets their identity
        self._identities = frozenset(map(id, self._things))
        self._held = threading.Lock()

    def overlaps(self, other: Claim) -> bool:
        """Tells whether two claims have a thing in common."""
        return not self._identities.isdisjoint(other._identities)

    def hold(self) -> None:
        """Waits until no other thread holds a claim on any of the things, and holds this one.

        KonkyoError: the other thread waits for this one, so that both would wait forever.
        """
        self._held.acquire(blocking=False)
        try:
            while (other := self._hold_or_blocker()) is not None:
                if other._held.acquire(timeout=_PATIENCE):
                    other._held.release()
        finally:
            _WAITING.pop(self.thread, None)

    def _hold_or_blocker(self) -> Claim | None:
        """Holds the claim, or returns one that is in the way."""
        with _LOCK:
            for other in _CLAIMS:
                if other.thread != self.thread and self.overlaps(other):
                    self._refuse_to_wait_forever(other.thread)
                    _WAITING[self.thread] = other.thread
                    return other
            _CLAIMS.append(self)
            return None

    def _refuse_to_wait_forever(self, thread: int) -> None:
        """Raises KonkyoError where a thread, by others or itself, waits for this one."""
        for _ in range(len(_WAITING)):
            thread = _WAITING.get(thread, 0)
            if thread == self.thread:
                raise KonkyoError(
                    "two threads each explain a network and, within that, the network of the other: both would wait "
                    "forever; explain the one network after the other"
                )

    def release(self) -> None:
        """Lets others have the things. It does nothing where the claim is not held."""
        with _LOCK:
            if self not in _CLAIMS:
                return
            _CLAIMS.remove(self)
        self._held.release()  # should an interrupt prevent this, those who wait look again all the same

    def contested(self) -> bool:
        """Tells whether another thread holds a claim, on whatever."""
        with _LOCK:
            return any(other.thread != self.thread for other in _CLAIMS)


def _start_anew() -> None:
    """Forgets, in a forked process, the claims of threads that it does not have."""
    global _LOCK
    _LOCK = threading.Lock()
    _CLAIMS[:] = [claim for claim in _CLAIMS if claim.thread == threading.get_ident()]
    _WAITING.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)

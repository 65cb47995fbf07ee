"""Seeds made of several numbers, so that what draws from one does not depend on what else draws."""

from __future__ import annotations


def mixed(*numbers: int) -> int:
    """Returns a seed that several numbers make; of one number, it is that number.

    >>> mixed(0, 7), mixed(1, 7)
    (7, 1000010)
    """
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number) % (1 << 63)
    return seed

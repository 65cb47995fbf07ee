"""Numbers of things in words."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Returns so many things, in the singular or the plural.

    >>> counted(1, "map"), counted(2, "map")
    ('1 map', '2 maps')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"

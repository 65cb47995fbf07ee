"""Numbers of things, and notes of images, in words."""

from __future__ import annotations

import re


def counted(number: int, noun: str) -> str:
    """Returns so many things, in the singular or the plural.

    >>> counted(1, "map"), counted(2, "map")
    ('1 map', '2 maps')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def note_of_image(number: int, note: str) -> str:
    """Returns a note with the number of the image that it is of, from 0.

    >>> note_of_image(2, "turned upright")
    'image 2: turned upright'
    """
    return f"image {number}: {note}"


def image_and_note(sentence: str) -> tuple[int | None, str]:
    """Returns the number of the image that `note_of_image` wrote, and the note; None for a note of all images.

    >>> image_and_note("image 2: turned upright"), image_and_note("classes: guessed")
    ((2, 'turned upright'), (None, 'classes: guessed'))
    """
    of_one = re.fullmatch(r"image (\d+): (.*)", sentence, re.DOTALL)
    return (None, sentence) if of_one is None else (int(of_one[1]), of_one[2])

"""Surveys: people are asked, without knowing the methods, which of two maps is the better one.

The names below are the public face of this package.
"""

from typing import TYPE_CHECKING

from konkyo.utils.lazy import lazy

if TYPE_CHECKING:
    from konkyo.survey.analysis import Analysis, analyse
    from konkyo.survey.counts import Counts
    from konkyo.survey.form import Answer, Form, Item, read_answers, write_answers

__all__ = ["Analysis", "Answer", "Counts", "Form", "Item", "analyse", "read_answers", "write_answers"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "konkyo.survey.analysis": ("Analysis", "analyse"),
        "konkyo.survey.counts": ("Counts",),
        "konkyo.survey.form": ("Answer", "Form", "Item", "read_answers", "write_answers"),
    },
)

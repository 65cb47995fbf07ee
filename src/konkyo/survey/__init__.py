"""Surveys: people are asked, without knowing the methods, which of two maps is the better one.

The names below are the public face of this package.
"""

from typing import TYPE_CHECKING

from konkyo.utils.lazy import lazy

if TYPE_CHECKING:
    from konkyo.survey.analysis import Analysis, analyse
    from konkyo.survey.assembly import Plan, build
    from konkyo.survey.collection import collect
    from konkyo.survey.counts import Counts
    from konkyo.survey.drawing import Drawing
    from konkyo.survey.form import Answer, Form, Item, read_answers, write_answers
    from konkyo.survey.page import write_offline
    from konkyo.survey.server import serve

__all__ = [
    "Analysis",
    "Answer",
    "Counts",
    "Drawing",
    "Form",
    "Item",
    "Plan",
    "analyse",
    "build",
    "collect",
    "read_answers",
    "serve",
    "write_answers",
    "write_offline",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "konkyo.survey.analysis": ("Analysis", "analyse"),
        "konkyo.survey.assembly": ("Plan", "build"),
        "konkyo.survey.collection": ("collect",),
        "konkyo.survey.counts": ("Counts",),
        "konkyo.survey.drawing": ("Drawing",),
        "konkyo.survey.form": ("Answer", "Form", "Item", "read_answers", "write_answers"),
        "konkyo.survey.page": ("write_offline",),
        "konkyo.survey.server": ("serve",),
    },
)

"""How alike the maps of one class are, over a data set: `consistency` runs a model, `measure` takes maps."""

from konkyo.evaluation.consistency.result import Baseline, ClassResult, Consistency, ImageResult
from konkyo.evaluation.consistency.run import consistency
from konkyo.evaluation.consistency.statistics import measure
from konkyo.evaluation.consistency.text import NOT_CORRECTNESS, PLACELESS

__all__ = [
    "NOT_CORRECTNESS",
    "PLACELESS",
    "Baseline",
    "ClassResult",
    "Consistency",
    "ImageResult",
    "consistency",
    "measure",
]

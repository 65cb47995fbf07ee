"""The tasks, one per file: what a network's output means. Importing this package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from konkyo.tasks.base import TASKS, Classes, Task, task
from konkyo.tasks.classification import ClassificationTask
from konkyo.tasks.detection import DetectionTask
from konkyo.tasks.embedding import EmbeddingTask
from konkyo.tasks.fields import CountingTask, DepthTask
from konkyo.tasks.keypoints import KeypointTask
from konkyo.tasks.regression import RegressionTask
from konkyo.tasks.segmentation import SegmentationTask

__all__ = [
    "TASKS",
    "Classes",
    "ClassificationTask",
    "CountingTask",
    "DepthTask",
    "DetectionTask",
    "EmbeddingTask",
    "KeypointTask",
    "RegressionTask",
    "SegmentationTask",
    "Task",
    "task",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

"""konkyo: what in an image a vision model decided on, and whether that answer can be trusted."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from konkyo import concepts, data, metrics, training
    from konkyo.engine.layer import Layer
    from konkyo.errors import KonkyoError, KonkyoWarning, NotApplicable
    from konkyo.evaluation.consistency import Consistency, consistency
    from konkyo.evaluation.diagnose.regions import RegionTest, region_test
    from konkyo.evaluation.diagnose.result import DiagnosisReport
    from konkyo.evaluation.diagnose.run import diagnose
    from konkyo.evaluation.evaluate import evaluate
    from konkyo.evaluation.map_log import log_maps
    from konkyo.evaluation.map_logger import MapLogger
    from konkyo.evaluation.neighbours import Neighbours, neighbours
    from konkyo.evaluation.plan import Maps
    from konkyo.evaluation.recommend import recommend
    from konkyo.evaluation.result import Evaluation
    from konkyo.evaluation.sanity import efficient_randomisation, random_class, randomisation, stability
    from konkyo.explanation.diagnosis import Diagnosis
    from konkyo.explanation.explain import compare, explain, explanations
    from konkyo.explanation.onnx import export_cam
    from konkyo.explanation.pairs import Pair, pair
    from konkyo.explanation.result import Explanation
    from konkyo.methods.base import Method, method, methods
    from konkyo.methods.wrappers import augmented, first_component, forgrad, sess, smoothed
    from konkyo.models import Model, Preprocess, load
    from konkyo.models.blackbox import BlackBox
    from konkyo.models.detectors import Detector
    from konkyo.models.detectors.open_vocabulary import image_guided_detector
    from konkyo.models.detectors.yolo import dense_detector
    from konkyo.models.readers import Clips, Signals, Volumes
    from konkyo.models.siamese import siamese
    from konkyo.report.report import report
    from konkyo.runs.records import Records
    from konkyo.runs.run import run
    from konkyo.targets.answers import Answer, EachToken, EachWord, Token
    from konkyo.targets.classes import Against, ClassTarget, ContrastTarget, Each, SumTarget, Target, TopK
    from konkyo.targets.detections import Detections, InstanceTarget
    from konkyo.targets.fields import Count, Depth
    from konkyo.targets.keypoints import Keypoint
    from konkyo.targets.numbers import Output
    from konkyo.targets.queries import Instance
    from konkyo.targets.regions import Mask, Pixel, Region, RegionTarget
    from konkyo.targets.similarity import Similarity
    from konkyo.targets.suppression import odam_nms
    from konkyo.targets.texts import Text
    from konkyo.tasks.base import Matching
    from konkyo.tasks.decision import Decision
    from konkyo.tasks.embedding import EmbeddingTask
    from konkyo.tasks.fields import CountingTask, DepthTask
    from konkyo.tasks.keypoints import KeypointTask
    from konkyo.tasks.regression import RegressionTask
    from konkyo.tasks.segmentation import SegmentationTask

from konkyo.version import __version__ as __version__

_HOMES = {
    "konkyo.evaluation.consistency": ("Consistency", "consistency"),
    "konkyo.evaluation.diagnose.regions": ("RegionTest", "region_test"),
    "konkyo.evaluation.diagnose.result": ("DiagnosisReport",),
    "konkyo.evaluation.diagnose.run": ("diagnose",),
    "konkyo.evaluation.map_log": ("log_maps",),
    "konkyo.evaluation.map_logger": ("MapLogger",),
    "konkyo.evaluation.neighbours": ("Neighbours", "neighbours"),
    "konkyo.explanation.diagnosis": ("Diagnosis",),
    "konkyo.errors": ("KonkyoError", "KonkyoWarning", "NotApplicable"),
    "konkyo.evaluation.evaluate": ("evaluate",),
    "konkyo.evaluation.plan": ("Maps",),
    "konkyo.evaluation.recommend": ("recommend",),
    "konkyo.evaluation.result": ("Evaluation",),
    "konkyo.explanation.explain": ("compare", "explain", "explanations"),
    "konkyo.explanation.onnx": ("export_cam",),
    "konkyo.explanation.result": ("Explanation",),
    "konkyo.targets.detections": ("Detections", "InstanceTarget"),
    "konkyo.explanation.pairs": ("Pair", "pair"),
    "konkyo.models.siamese": ("siamese",),
    "konkyo.targets.fields": ("Count", "Depth"),
    "konkyo.tasks.fields": ("CountingTask", "DepthTask"),
    "konkyo.targets.keypoints": ("Keypoint",),
    "konkyo.targets.numbers": ("Output",),
    "konkyo.targets.similarity": ("Similarity",),
    "konkyo.tasks.embedding": ("EmbeddingTask",),
    "konkyo.tasks.keypoints": ("KeypointTask",),
    "konkyo.tasks.regression": ("RegressionTask",),
    "konkyo.engine.layer": ("Layer",),
    "konkyo.methods.base": ("Method", "method", "methods"),
    "konkyo.models": ("Model", "Preprocess", "load"),
    "konkyo.models.blackbox": ("BlackBox",),
    "konkyo.models.detectors": ("Detector",),
    "konkyo.models.readers": ("Clips", "Signals", "Volumes"),
    "konkyo.tasks.base": ("Matching",),
    "konkyo.tasks.decision": ("Decision",),
    "konkyo.models.detectors.open_vocabulary": ("image_guided_detector",),
    "konkyo.models.detectors.yolo": ("dense_detector",),
    "konkyo.methods.wrappers": ("augmented", "first_component", "forgrad", "sess", "smoothed"),
    "konkyo.evaluation.sanity": ("efficient_randomisation", "random_class", "randomisation", "stability"),
    "konkyo.report.report": ("report",),
    "konkyo.runs.records": ("Records",),
    "konkyo.runs.run": ("run",),
    "konkyo.targets.suppression": ("odam_nms",),
    "konkyo.targets.answers": ("Answer", "EachToken", "EachWord", "Token"),
    "konkyo.targets.texts": ("Text",),
    "konkyo.targets.classes": (
        "Against",
        "ClassTarget",
        "ContrastTarget",
        "Each",
        "SumTarget",
        "Target",
        "TopK",
    ),
    "konkyo.targets.queries": ("Instance",),
    "konkyo.targets.regions": ("Mask", "Pixel", "Region", "RegionTarget"),
    "konkyo.tasks.segmentation": ("SegmentationTask",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Against",
    "Answer",
    "BlackBox",
    "ClassTarget",
    "Clips",
    "Consistency",
    "ContrastTarget",
    "Count",
    "CountingTask",
    "Decision",
    "Depth",
    "DepthTask",
    "Detections",
    "Detector",
    "Diagnosis",
    "DiagnosisReport",
    "Each",
    "EachToken",
    "EachWord",
    "EmbeddingTask",
    "Evaluation",
    "Explanation",
    "Instance",
    "InstanceTarget",
    "Keypoint",
    "KeypointTask",
    "KonkyoError",
    "KonkyoWarning",
    "Layer",
    "MapLogger",
    "Maps",
    "Mask",
    "Matching",
    "Method",
    "Model",
    "Neighbours",
    "NotApplicable",
    "Output",
    "Pair",
    "Pixel",
    "Preprocess",
    "Records",
    "Region",
    "RegionTarget",
    "RegionTest",
    "RegressionTask",
    "SegmentationTask",
    "Signals",
    "Similarity",
    "SumTarget",
    "Target",
    "Text",
    "Token",
    "TopK",
    "Volumes",
    "augmented",
    "compare",
    "concepts",
    "consistency",
    "data",
    "dense_detector",
    "diagnose",
    "efficient_randomisation",
    "evaluate",
    "explain",
    "explanations",
    "export_cam",
    "first_component",
    "forgrad",
    "image_guided_detector",
    "load",
    "log_maps",
    "method",
    "methods",
    "metrics",
    "neighbours",
    "odam_nms",
    "pair",
    "random_class",
    "randomisation",
    "recommend",
    "region_test",
    "report",
    "run",
    "sess",
    "siamese",
    "smoothed",
    "stability",
    "training",
]


class _Package(ModuleType):
    """Public names are imported when first used, so that `konkyo --help` does not wait seconds for torch.

    Importing the package `konkyo.methods` would put it in the place of the function `methods`; it must not.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in ("concepts", "data", "metrics", "training"):
            return import_module(f"konkyo.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'konkyo' has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package

"""What adapters of detectors give: candidates in the autograd graph, and which of them the detector keeps."""

from konkyo.tasks.detection import Detector, Kept, best_class, best_pairs

__all__ = ["Detector", "Kept", "best_class", "best_pairs"]

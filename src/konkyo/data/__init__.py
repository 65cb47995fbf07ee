"""Images in, data sets with ground truth."""

from konkyo.data import images, samples, scenes

__all__ = ["images", "samples", "scenes"]

"""Images in, data sets with ground truth."""

from konkyo.data import images, scenes

__all__ = ["images", "scenes"]

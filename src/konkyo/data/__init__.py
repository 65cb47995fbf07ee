"""Images in, data sets with ground truth.

Besides the modules `images`, `samples`, `scenes` and `splits`, the names below are the public face of this package.
"""

from typing import TYPE_CHECKING

from konkyo.data import images, samples, splits
from konkyo.data.sets import scenes
from konkyo.utils.lazy import lazy

if TYPE_CHECKING:
    from konkyo.data.axes import Axes, Coordinates
    from konkyo.data.cues import Cue, marked
    from konkyo.data.images import find_images, open_image
    from konkyo.data.samples import Sample, Samples
    from konkyo.data.sets.lesions import Lesions
    from konkyo.data.sets.scenes import Scenes
    from konkyo.data.splits import Examples, Splits

__all__ = [
    "Axes",
    "Coordinates",
    "Cue",
    "Examples",
    "Lesions",
    "Sample",
    "Samples",
    "Scenes",
    "Splits",
    "find_images",
    "images",
    "marked",
    "open_image",
    "samples",
    "scenes",
    "splits",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "konkyo.data.axes": ("Axes", "Coordinates"),
        "konkyo.data.cues": ("Cue", "marked"),
        "konkyo.data.images": ("find_images", "open_image"),
        "konkyo.data.samples": ("Sample", "Samples"),
        "konkyo.data.sets.lesions": ("Lesions",),
        "konkyo.data.sets.scenes": ("Scenes",),
        "konkyo.data.splits": ("Examples", "Splits"),
    },
)

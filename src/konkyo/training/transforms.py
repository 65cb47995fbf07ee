"""What happens to a picture before a network in training sees it."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from konkyo.models import Preprocess


def augmented(preprocess: Preprocess, least: float = 0.9) -> Callable[[Image.Image], Tensor]:
    """Returns what mirrors half of the pictures and cuts a part of every one, as large as the network wants.

    A part has from `least` to all of the area. Parts are from 3/4 to 4/3 times as wide as high. Draws from the global
    random state, as torchvision does.
    """
    side = preprocess.side
    size = (side, side) if isinstance(side, int) else side
    change = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomResizedCrop(size, scale=(least, 1.0))])
    then = Preprocess(None, None, preprocess.mean, preprocess.std)

    def prepare(image: Image.Image) -> Tensor:
        return then(change(image.convert("RGB" if len(preprocess.mean) == 3 else "L")))

    return prepare

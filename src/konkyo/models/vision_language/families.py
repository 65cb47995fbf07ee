"""Families: what the config of an image-text-to-text model and its image processor say of forms and preprocessings."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from konkyo.errors import KonkyoError
from konkyo.models.preprocess import Preprocess
from konkyo.models.vision_language.forms import AnyResolution, Colour, Form, Packed, Stretched, Tiled, Whole
from konkyo.models.vision_language.sizes import AtMost, Multiples, TileMultiples

Family: TypeAlias = Callable[[Any, Any], tuple[Form, dict[str, Any]]]
"""(config, image processor) -> the form, and arguments of `Preprocess` besides the colours and the filter."""
_FAMILIES: dict[str, Family] = {}
_LONGEST = 4096
"""Pictures that networks cut into tiles at their own size are shrunk first where a side is longer, in pixels."""
_TOLERANCE = 1.0
"""By so many grey levels of 255, on average, may what is prepared here differ from what the processor prepares."""


def family(*types: str) -> Callable[[Family], Family]:
    """Registers who knows the models of these `config.model_type`."""

    def register(describe: Family) -> Family:
        _FAMILIES.update(dict.fromkeys(types, describe))
        return describe

    return register


def is_known(config: Any) -> bool:
    """Tells whether models with this config are of a family that is known here."""
    return getattr(config, "model_type", "") in _FAMILIES


def form_of(config: Any, processor: Any = None) -> tuple[Form, Preprocess]:
    """Returns how a network with this config cuts pictures, and how they are prepared for that.

    `processor`: its image processor; without one the settings of the family's own class hold. KonkyoError: a family
    that is not known, or settings that are not followed here.
    """
    kind = str(config.model_type)
    if kind not in _FAMILIES:
        raise KonkyoError(
            f"where the image's tokens of a {kind} lie is not known here; known are {', '.join(sorted(_FAMILIES))}"
        )
    processor = processor or _default_processor(config)
    form, arguments = _FAMILIES[kind](config, processor)
    if not (processor.do_resize and processor.do_rescale and processor.do_normalize):
        raise KonkyoError("a processor that resizes, rescales and normalises pictures was expected")
    how = {"interpolation": _filter(processor), "mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    return form, Preprocess(**{"crop": None, "centre": "floor", **how, **arguments})


_SIZES = ((270, 351), (411, 157), (90, 400))
"""The pictures (height, width) on which the two are compared: wide, tall, and very wide."""


def require_same(form: Form, preprocess: Preprocess, processor: Any) -> None:
    """Raises KonkyoError where pictures come out otherwise than from the library's own image processor.

    They are compared on pictures of noise, which are the hardest.
    """
    random = np.random.default_rng(0)
    for size in _SIZES:
        picture = Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
        if (apart := difference(form, preprocess, processor, picture)) > _TOLERANCE:
            raise KonkyoError(
                f"pictures prepared as by {type(processor).__name__} were expected; a picture of {size[1]} x {size[0]} "
                f"differs by {apart:.3g} grey levels on average"
            )


def difference(form: Form, preprocess: Preprocess, processor: Any, picture: Image.Image) -> float:
    """Returns by how many grey levels of 255 what the network gets of a picture differs from the library's own.

    It is the mean over all values. Infinite: they do not even have one shape.
    """
    ours = form.inputs(preprocess(picture)[None])
    theirs = processor(images=[picture], return_tensors="pt", **_SPLIT.get(type(form), {}))
    a, b = ours["pixel_values"], theirs["pixel_values"]
    if a.shape != b.shape:
        return math.inf
    return float((a - b).abs().mean()) * 255 * float(np.mean(preprocess.std))


_SPLIT: dict[type[Form], dict[str, Any]] = {Stretched: {"crop_to_patches": True}}
"""What the processor of images and texts tells its image processor."""


@family("llava", "vipllava")
def _llava(config: Any, processor: Any) -> tuple[Form, dict[str, Any]]:
    side, cells = _square(config.vision_config)
    keeps = getattr(config, "vision_feature_select_strategy", "default") == "full"
    prefix = int(keeps and config.vision_config.model_type == "clip_vision_model")
    if getattr(processor, "do_pad", False):
        raise KonkyoError("a processor without padding (do_pad=False) was expected: pictures are cropped to a square")
    arguments = {"resize": side, "crop": side} if processor.do_center_crop else {"resize": (side, side)}
    return Whole((side, side), (cells, cells), prefix), arguments


@family("paligemma")
def _paligemma(config: Any, processor: Any) -> tuple[Form, dict[str, Any]]:
    del processor
    side, cells = _square(config.vision_config)
    return Whole((side, side), (cells, cells)), {"resize": (side, side)}


@family("gemma3")
def _gemma3(config: Any, processor: Any) -> tuple[Form, dict[str, Any]]:
    if processor.do_pan_and_scan:
        raise KonkyoError("Gemma 3 without pan and scan was expected: its crops overlap, and are no grid")
    side, _ = _square(config.vision_config)
    cells = math.isqrt(config.mm_tokens_per_image)
    return Whole((side, side), (cells, cells)), {"resize": (side, side)}


@family("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5")
def _qwen(config: Any, processor: Any) -> tuple[Form, dict[str, Any]]:
    vision = config.vision_config
    patch, merge = vision.patch_size, vision.spatial_merge_size
    limits = _sizes(processor)
    rule = Multiples(patch * merge, limits["shortest_edge"], limits["longest_edge"])
    return Packed(patch, merge, vision.temporal_patch_size), {"resize": rule}


@family("idefics3", "smolvlm")
def _idefics3(config: Any, processor: Any) -> tuple[Form, dict[str, Any]]:
    side, cells = _square(config.vision_config)
    rule = TileMultiples(_sizes(processor)["longest_edge"], side, processor.do_image_splitting)
    return Tiled(side, cells // config.scale_factor, *_colours(processor), filter=_filter(processor)), {"resize": rule}


@family("internvl", "aya_vision")
def _internvl(config: Any, processor: Any) -> tuple[Form, dict[str, Any]]:
    side, cells = _square(config.vision_config)
    fewer = config.downsample_factor if config.model_type == "aya_vision" else round(1 / config.downsample_ratio)
    black, white = _colours(processor)
    form = Stretched(
        side,
        cells // fewer,
        black,
        white,
        filter=_filter(processor),
        least=processor.min_patches,
        most=processor.max_patches,
    )
    return form, {"resize": AtMost(_LONGEST)}


@family("llava_next", "llava_onevision")
def _llava_next(config: Any, processor: Any) -> tuple[Form, dict[str, Any]]:
    side, cells = _square(config.vision_config)
    black, white = _colours(processor)
    canvases = tuple((int(height), int(width)) for height, width in config.image_grid_pinpoints)
    most = str(getattr(config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    form = AnyResolution(
        side, cells, canvases, black, white, filter=_filter(processor), most=int(most) if most.isdigit() else None
    )
    return form, {"resize": AtMost(_LONGEST)}


def _square(vision: Any) -> tuple[int, int]:
    """Returns the side of the pictures that a vision tower takes, in pixels and in patches. KonkyoError: no square."""
    sides, patches = (v if isinstance(v, (list, tuple)) else (v, v) for v in (vision.image_size, vision.patch_size))
    if len(set(sides)) > 1 or len(set(patches)) > 1:
        raise KonkyoError(f"square pictures and patches were expected; got {sides} and {patches}")
    return int(sides[0]), int(sides[0]) // int(patches[0])


def _sizes(processor: Any) -> dict[str, int]:
    size = processor.size
    return {key: int(value) for key, value in dict(size).items() if value is not None}


def _filter(processor: Any) -> Any:
    return Image.Resampling(int(processor.resample)).name.lower()


def _colours(processor: Any) -> tuple[Colour, Colour]:
    """Returns the values of black and white per channel."""
    pairs = list(zip(processor.image_mean, processor.image_std, strict=True))
    return tuple(-m / s for m, s in pairs), tuple((1 - m) / s for m, s in pairs)


def _default_processor(config: Any) -> Any:
    """Returns an image processor of the family's class with its own settings."""
    auto = import_module("transformers.models.auto.image_processing_auto")
    return next(iter(auto.IMAGE_PROCESSOR_MAPPING[type(config)].values()))()

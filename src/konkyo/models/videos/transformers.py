"""transformers' classifiers of videos (VideoMAE, ViViT, TimeSformer, V-JEPA 2) and of spectrograms (AST)."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from konkyo.models.axes import known_axes
from konkyo.models.kinds import class_names, is_a, kind, source_of
from konkyo.models.readers import Clips, Signals


@kind("transformers", "video classifier", auto="AutoModelForVideoClassification")
def videos(module: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns how clips are read for a classifier of videos; None: another module."""
    del processor
    if not any(name.endswith("ForVideoClassification") for name in class_names(module)):
        return None
    config: Any = module.config
    source = source_of(module)
    frames = next((n for key in ("num_frames", "frames_per_clip") if (n := getattr(config, key, None))), 16)
    # What is read for pictures alone says nothing of clips.
    return {"axes": known_axes(module), "reader": _clips(source, frames) if source else None, "preprocess": None}


@kind("transformers", "audio classifier", auto="AutoModelForAudioClassification")
def spectrograms(module: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns how spectrograms are read for an AST; None: another module, as one of waveforms."""
    del processor
    if not is_a(module, "ASTForAudioClassification"):
        return None
    return {"axes": known_axes(module), "reader": Signals(), "preprocess": None}


@lru_cache(maxsize=64)
def _clips(source: str, frames: int) -> Clips | None:
    """Returns how the processor in a folder, or in the hub's cache, prepares clips; None where that is not known.

    What its numbers say is held against the processor itself, on a clip of noise.
    """
    numbers_of = import_module("konkyo.models.transformers").from_numbers
    library = import_module("transformers")
    random = np.random.default_rng(0)
    try:
        settings = {"trust_remote_code": False, "local_files_only": True}
        processor = library.AutoImageProcessor.from_pretrained(source, **settings)
        numbers = processor.to_dict()
        for size in ((70, 91), (131, 67)):
            clip = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(frames)]
            reader = Clips(frames, numbers_of(numbers))
            (reading,) = reader.read(clip)
            expected = processor(clip, return_tensors="pt")["pixel_values"][0].transpose(0, 1)
            level = 1 / 255 / min(reader.picture.std)
            if reading.values.shape != expected.shape or float((reading.values - expected).abs().mean()) >= level:
                return None
    except Exception:  # no processor, one of another kind, or a setting that is not known here
        return None
    return reader

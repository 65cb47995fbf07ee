"""open_clip's models: images and texts in one space. The library is not imported: a module of it is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from konkyo.errors import KonkyoError
from konkyo.models.kinds import kind
from konkyo.models.preprocess import Preprocess
from konkyo.models.texts.clip import Pair

_KINDS = ("CLIP", "CustomTextCLIP")


@kind("open_clip", "image-text model")
def open_clip(module: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns a model of open_clip as a pair; None: another module.

    `processor`: what `open_clip.get_tokenizer` gives. Those with a bias of the logits are SigLIPs.
    """
    if type(module).__name__ not in _KINDS:
        return None
    sigmoid = getattr(module, "logit_bias", None) is not None
    pair = Pair(module, _image, partial(_text, module, processor), sigmoid)
    return {**pair.arguments(), "preprocess": _preprocess(module)}


def _image(module: nn.Module, images: Tensor) -> Tensor:
    """Returns the embeddings of images (N, D)."""
    encode: Any = module.encode_image
    embeddings: Tensor = encode(images)
    return embeddings


def _text(module: nn.Module, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Returns the embeddings of texts (T, D). KonkyoError: no tokenizer, or a text that it would cut off."""
    if not callable(tokenizer):
        raise KonkyoError(
            f"{type(module).__name__} reads texts with a tokenizer: konkyo.Model(module, "
            "processor=open_clip.get_tokenizer(NAME))"
        )
    longest = int(getattr(tokenizer, "context_length", 0) or 0)
    for text in texts if longest and callable(getattr(tokenizer, "encode", None)) else ():
        if len(tokenizer.encode(text)) + 2 > longest:  # with the marks of begin and end
            raise KonkyoError(f"{type(module).__name__} reads texts of up to {longest} tokens; longer is {text!r}")
    encode: Any = module.encode_text
    tokens: Tensor = tokenizer(list(texts))
    embeddings: Tensor = encode(tokens.to(next(module.parameters()).device))
    return embeddings


def _preprocess(module: nn.Module) -> Preprocess | None:
    """Returns the preprocessing that `open_clip.create_model` notes on a model; None where there is none, or another.

    The short side is resized and the middle cut out, or the picture is squashed.
    """
    visual: Any = module.visual
    config = getattr(visual, "preprocess_cfg", None) or {}
    if config.get("resize_mode") not in ("shortest", "squash") or config.get("mode", "RGB") != "RGB":
        return None
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    squashed = config["resize_mode"] == "squash"
    if not squashed and height != width:
        return None
    return Preprocess(
        resize=(height, width) if squashed else height,
        crop=None if squashed else (height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
    )

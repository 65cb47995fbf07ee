"""CLIP, SigLIP and SigLIP 2 of transformers: images and texts in one space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError
from konkyo.models.kinds import kind, source_of
from konkyo.models.preprocess import Preprocess
from konkyo.models.prompts import Prompts, Texts
from konkyo.models.transformers import import_transformers
from konkyo.targets.texts import unit
from konkyo.tasks.texts import ImageTextTask, ZeroShotTask
from konkyo.utils.tokens import require_known

_SOFTMAX = ("CLIPModel", "MetaClip2Model")
_SIGMOID = ("SiglipModel", "Siglip2Model")
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True, eq=False)
class Pair:
    """A pair is what makes embeddings of images and of texts, and a score of two of them."""

    module: nn.Module
    image: Callable[[nn.Module, Tensor], Tensor]
    """The module, prepared images (N, C, H, W) -> embeddings (N, D), of any length."""
    text: Callable[[Sequence[str]], Tensor]
    """Texts -> embeddings (T, D), of any length. KonkyoError: a text that it cannot read."""
    sigmoid: bool
    """Whether each text has a probability of its own (SigLIP); else it is a softmax over the texts (CLIP)."""

    @property
    def scale(self) -> float:
        """Returns what a cosine is multiplied by in a logit."""
        scale: Any = self.module.logit_scale
        return float(scale.detach().float().exp())

    @property
    def bias(self) -> float:
        """Returns what is added to it then; 0 where there is none."""
        bias: Any = getattr(self.module, "logit_bias", None)
        return 0.0 if bias is None else float(bias.detach().float())

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Returns the embeddings of texts (T, D), of length 1, without a graph, in eval mode."""
        with untouched(self.module), torch.no_grad():
            return unit(self.text(texts))

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of `Model` for the pair: without texts it puts out the embeddings of images."""
        task = ImageTextTask(self.embed, self.scale, self.bias, self.sigmoid)
        prompts = Prompts("texts", self.with_texts, required=False)
        return {"task": task, "call": self.image, "classes": (), "prompts": prompts}

    def with_texts(self, texts: Texts) -> dict[str, Any]:
        """Returns the arguments of `Model` that make a classifier of the pair, whose classes are the texts.

        A class with several texts has the mean of their embeddings, each of length 1, scaled to length 1.
        """
        counts = [len(sentences) for sentences in texts.sentences]
        every = self.embed([sentence for sentences in texts.sentences for sentence in sentences])
        vectors = unit(torch.stack([rows.mean(0) for rows in torch.split(every, counts)]))
        scale, bias = self.scale, self.bias

        def logits(module: nn.Module, images: Tensor) -> Tensor:
            embedding = self.image(module, images)
            return scale * functional.normalize(embedding, dim=1) @ vectors.to(embedding).T + bias

        task = ZeroShotTask(multilabel=self.sigmoid, scale=scale, bias=bias)
        return {"task": task, "call": logits, "classes": texts.names}


@kind("transformers", "image-text model", auto="AutoModelForZeroShotImageClassification", processor="AutoTokenizer")
def clip(module: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns CLIP, MetaCLIP 2, SigLIP or SigLIP 2 as a pair; None: another module.

    `processor`: the tokenizer, or a processor that has one. None: it is read from the files that the module came from,
    when a text is given.
    """
    name = type(module).__name__
    if name not in _SOFTMAX + _SIGMOID:
        return None
    flexible = name == "Siglip2Model"
    text = partial(_text, module, processor, name in _SIGMOID)
    arguments = Pair(module, _of_patches if flexible else _image, text, name in _SIGMOID).arguments()
    preprocess = _flexible_preprocess(module, processor) if flexible else None
    return {**arguments, **({"preprocess": preprocess} if preprocess else {})}


# --- images -----------------------------------------------------------------------------------------------------------


def _image(module: nn.Module, images: Tensor) -> Tensor:
    """Returns the embeddings of images (N, D)."""
    get: Any = module.get_image_features
    return _embedding(get(pixel_values=images))


def _of_patches(module: nn.Module, images: Tensor) -> Tensor:
    """Returns the embeddings (N, D) of images (N, C, H, W), of any sides that are multiples of the patch.

    SigLIP 2 takes rows of patches, each (row, column, channel), with the grid's shape. Its processor adds empty rows up
    to a fixed number, which are left out of every attention; here there are none.
    """
    network: Any = module
    size = int(network.config.vision_config.patch_size)
    if images.shape[2] % size or images.shape[3] % size:
        raise KonkyoError(
            f"the sides of the images of SigLIP 2 are multiples of its patch of {size} pixels; got {images.shape[2]} x "
            f"{images.shape[3]}"
        )
    tall, wide = images.shape[2] // size, images.shape[3] // size
    grid = images.reshape(*images.shape[:2], tall, size, wide, size)
    patches = grid.permute(0, 2, 4, 3, 5, 1).reshape(len(images), tall * wide, -1)
    shapes = torch.tensor([[tall, wide]] * len(images), device=images.device)
    mask = torch.ones(len(images), tall * wide, dtype=torch.long, device=images.device)
    return _embedding(
        network.get_image_features(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)
    )


def _embedding(output: Any) -> Tensor:
    """Returns the tensor in what `get_image_features` and `get_text_features` give, which depends on the version."""
    embedding: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return embedding


def _flexible_preprocess(module: nn.Module, processor: Any) -> Preprocess | None:
    """Returns the preprocessing of SigLIP 2 with any shape of picture; None where its processor is not at hand."""
    images: Any = getattr(processor, "image_processor", None)
    source = _source(module) or str(getattr(processor, "name_or_path", "") or "")
    if images is None and source:
        try:
            images = import_transformers().AutoImageProcessor.from_pretrained(source, **_LOCAL)
        except (OSError, ValueError, ImportError):
            return None
    if not type(images).__name__.startswith("Siglip2"):
        return None
    return Preprocess(
        resize=None,
        crop=None,
        mean=tuple(images.image_mean),
        std=tuple(images.image_std),
        multiple=images.patch_size,
        patches=images.max_num_patches,
    )


# --- texts ------------------------------------------------------------------------------------------------------------


def _text(module: nn.Module, processor: Any, padded: bool, texts: Sequence[str]) -> Tensor:
    """Returns the embeddings of texts (T, D).

    `padded`: to the most tokens that there can be, as SigLIP was trained. KonkyoError: no tokenizer, or a text that is
    longer than the network reads.
    """
    tokenizer = _tokenizer(module, processor)
    require_known(tokenizer, texts)
    limit = int(module.config.text_config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    how = {"padding": "max_length", "max_length": limit} if padded else {"padding": True}
    tokens = tokenizer(list(texts), return_tensors="pt", **how)
    if tokens["input_ids"].shape[1] > limit:
        longest = max(texts, key=lambda text: len(tokenizer(text)["input_ids"]))
        raise KonkyoError(f"{type(module).__name__} reads texts of up to {limit} tokens; longer is {longest!r}")
    device = next(module.parameters()).device
    get: Any = module.get_text_features
    return _embedding(get(**{name: value.to(device) for name, value in tokens.items() if name != "token_type_ids"}))


def _tokenizer(module: nn.Module, processor: Any) -> Any:
    """Returns the tokenizer in a processor, or the one in the files of the module. KonkyoError: there is none."""
    if processor is not None:
        return getattr(processor, "tokenizer", processor)
    name, source = type(module).__name__, _source(module)
    if source:
        try:
            return import_transformers().AutoTokenizer.from_pretrained(source, **_LOCAL)
        except (OSError, ValueError, ImportError) as error:
            raise KonkyoError(f"{name} reads texts with a tokenizer, and in {source} there is none: {error}") from error
    raise KonkyoError(
        f"{name} reads texts with a tokenizer, and this module came from no files that have one: "
        "konkyo.Model(module, processor=tokenizer), or load it by its name, hf/ID or hf/FOLDER"
    )


def _source(module: nn.Module) -> str:
    """Returns the folder or name that the module was loaded from; "" where it was built from a config."""
    source = source_of(module)
    return source if source and (Path(source).is_dir() or "/" in source) else ""

"""transformers' detectors of any text: their classes are the texts that they are given with the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.errors import KonkyoError
from konkyo.models.detectors import Detector, Kept, best_class, best_pairs, boxes_in_pixels
from konkyo.models.kinds import class_names, is_a, kind, source_of
from konkyo.models.prompts import Prompts, Texts
from konkyo.models.transformers import local_processor
from konkyo.targets.candidates import Candidates, pack
from konkyo.utils.tensors import at_least_float32
from konkyo.utils.tokens import require_known

_Family: TypeAlias = Callable[[Any, Any, Sequence[str]], Detector]
_FAMILIES: dict[str, _Family] = {}
"""The classes of transformers, and what makes (module, tokenizer, texts) a detector."""


def _family(*kinds: str) -> Callable[[_Family], _Family]:
    """Registers what makes detectors of modules of these classes."""

    def register(family: _Family) -> _Family:
        _FAMILIES.update(dict.fromkeys(kinds, family))
        return family

    return register


@kind("transformers", "open-vocabulary detector", auto="AutoModelForZeroShotObjectDetection", processor="AutoProcessor")
def describe(module: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns how a detector of transformers, or one derived from it, reads texts; None: another module."""
    names = class_names(module, "transformers")
    family = next((_FAMILIES[name] for name in names if name in _FAMILIES), None)
    if family is None:
        return None
    unbound = Detector(0, _unbound, partial(best_class, classes=0), "")
    return {"detector": unbound, "prompts": Prompts("texts", partial(_bound, family, module, processor))}


def _unbound(module: nn.Module, images: Tensor) -> Tensor:
    """Raises KonkyoError: without texts there are no classes."""
    raise KonkyoError(f"{type(module).__name__} has no classes for {len(images)} images: give texts=")


def _bound(family: _Family, module: Any, processor: Any, texts: Texts) -> dict[str, Any]:
    """Returns the detector whose classes are the texts, which are read anew in every forward, before the image.

    KonkyoError: several templates, or nothing to read texts with.
    """
    if any(len(sentences) > 1 for sentences in texts.sentences):
        raise KonkyoError(f"{type(module).__name__} reads every text once; {len(texts.sentences[0])} templates came")
    sentences = [sentence.strip() for (sentence,) in texts.sentences]
    tokenizer = _tokenizer(module, processor)
    require_known(tokenizer, sentences)
    return {"detector": family(module, tokenizer, sentences), "classes": texts.names}


def _tokenizer(module: Any, processor: Any) -> Any:
    """Returns a tokenizer: that which was given, of the processor that was given, or of the module's own files.

    KonkyoError: there is none; nothing is downloaded.
    """
    if processor is None:
        processor = local_processor(source_of(module))
    tokenizer = getattr(processor, "tokenizer", processor)
    if not callable(getattr(tokenizer, "convert_tokens_to_ids", None)):
        raise KonkyoError(
            f"{type(module).__name__} reads texts as its tokenizer cuts them up; give that, or its processor: "
            "konkyo.Model(module, processor=transformers.AutoProcessor.from_pretrained(...))"
        )
    return tokenizer


def _encoded(tokenizer: Any, texts: Sequence[str], most: int) -> dict[str, Tensor]:
    """Returns token ids (K, L) and their mask, every text filled up to `most` tokens. KonkyoError: one is longer."""
    tokens = tokenizer(list(texts), padding="max_length", max_length=most, return_tensors=None)
    for text, ids in zip(texts, tokens["input_ids"], strict=True):
        _require_length(text, len(ids), most)
    return {name: torch.tensor(tokens[name]) for name in ("input_ids", "attention_mask")}


def _require_length(text: str, tokens: int, most: int) -> None:
    if tokens > most:
        raise KonkyoError(f"the network reads {most} tokens at most; {text!r} has {tokens}: fewer or shorter texts")


# --- Grounding DINO ---------------------------------------------------------------------------------------------------


@_family("GroundingDinoForObjectDetection", "MMGroundingDinoForObjectDetection")
def _grounding_dino(module: Any, tokenizer: Any, texts: Sequence[str]) -> Detector:
    """All texts are one prompt, "cat. remote.", and a candidate has a logit for every token of it.

    The probability of a text is the largest sigmoid among its tokens (Liu et al., 2023, as in the library).
    """
    if dotted := next((text for text in texts if "." in text or "?" in text), None):
        raise KonkyoError(f"full stops and question marks end a text for {type(module).__name__}; {dotted!r} has one")
    prompt = " ".join(f"{text.lower()}." for text in texts)
    tokens = {name: torch.tensor([ids]) for name, ids in tokenizer(prompt, return_token_type_ids=True).items()}
    ids = tokens["input_ids"]
    _require_length(prompt, ids.shape[1], module.config.max_text_len)
    # The network itself tells phrases apart by these tokens.
    ends = torch.isin(ids[0], module.model.special_tokens.cpu())
    spans = (ends.cumsum(0) * ~ends).tolist()
    phrases = [[at for at, span in enumerate(spans) if span == number] for number in sorted(set(spans) - {0})]
    if len(phrases) != len(texts):
        raise KonkyoError(
            f"the tokenizer makes {len(phrases)} phrases of {prompt!r}, not {len(texts)}; is it that of the network?"
        )

    def propose(network: Any, images: Tensor) -> Tensor:
        inputs = {name: value.to(images.device).expand(len(images), -1) for name, value in tokens.items()}
        output = network(pixel_values=images, **inputs, return_dict=True)
        # Only tokens of texts: the rest of the logits are -inf, or of marks between them.
        logits = torch.stack([output.logits[..., phrase].amax(-1) for phrase in phrases], -1)
        return pack(boxes_in_pixels(output.pred_boxes, images), at_least_float32(logits).sigmoid())

    layer = "model.backbone.conv_encoder"  # `model.backbone` puts out position embeddings, too
    return Detector(len(texts), propose, partial(best_class, classes=len(texts)), layer, threshold=0.25)


# --- OWL --------------------------------------------------------------------------------------------------------------


@_family("OwlViTForObjectDetection", "Owlv2ForObjectDetection")
def _owl(module: Any, tokenizer: Any, texts: Sequence[str]) -> Detector:
    """Every patch is a candidate; its logit for a text is a scaled cosine, apart from those for other texts."""
    tokens = _encoded(tokenizer, texts, module.config.text_config.max_position_embeddings)
    return _owl_detector(module, partial(_embedded_texts, tokens), len(texts))


def _embedded_texts(tokens: dict[str, Tensor], network: Any) -> Tensor:
    """Returns the embeddings of the texts (K, D)."""
    inputs = {name: ids.to(network.device) for name, ids in tokens.items()}
    embeddings: Tensor = network.base_model.get_text_features(**inputs, return_dict=True).pooler_output
    return functional.normalize(embeddings, dim=-1)


def image_guided_detector(module: nn.Module, query: Tensor) -> Detector:
    """Makes a detector of what a prepared image (3, H, W) shows of an OWL-ViT or OWLv2; it is its one class.

    As `image_guided_detection` of the library takes it, the query is the embedding of one box of that image: the most
    unusual of the largest ones (OWL-ViT), or the surest object (OWLv2). KonkyoError: another module or image.
    """
    if not any(is_a(module, name) for name in ("OwlViTForObjectDetection", "Owlv2ForObjectDetection")):
        raise KonkyoError(f"an OWL-ViT or OWLv2 of transformers was expected; got {type(module).__name__}")
    if not isinstance(query, Tensor) or query.ndim != 3 or not query.is_floating_point():
        came = f"{tuple(query.shape)} {query.dtype}" if isinstance(query, Tensor) else type(query).__name__
        raise KonkyoError(f"a prepared image (3, H, W), as model.preprocess(picture) gives, was expected; got {came}")
    guided = _owl_detector(module, partial(_embedded_image, query), 1)
    return replace(guided, keep=partial(_best_apart, classes=1, iou=0.3), threshold=0.6)


def _embedded_image(query: Tensor, network: Any) -> Tensor:
    """Returns the embedding (1, D) of what an image shows."""
    weights = next(network.parameters())
    features = network.image_embedder(pixel_values=query[None].to(weights.device, weights.dtype))[0]
    embedding: Tensor | None = network.embed_image_query(features.flatten(1, 2), features)[0]
    if embedding is None:
        raise KonkyoError(f"{type(network).__name__} finds no object in the query image")
    return embedding.flatten(0, -2)


def _owl_detector(module: Any, queries: Callable[[Any], Tensor], count: int) -> Detector:
    """Makes a detector whose classes are embeddings (K, D), which `queries` computes by the network as it is then."""

    def propose(network: Any, images: Tensor) -> Tensor:
        embeddings = queries(network)
        features = network.image_embedder(pixel_values=images)[0]
        cells = features.flatten(1, 2)
        logits, _ = network.class_predictor(cells, embeddings.expand(len(images), -1, -1))
        return pack(boxes_in_pixels(network.box_predictor(cells, features), images), at_least_float32(logits).sigmoid())

    # The heads read a patch and the class token: behind the last block no other patch has a gradient.
    vision, tower = module.config.vision_config, f"{module.base_model_prefix}.vision_model"
    blocks = vision.num_hidden_layers
    layer = f"{tower}.encoder.layers.{blocks - 2}" if blocks > 1 else f"{tower}.pre_layernorm"
    return Detector(count, propose, partial(best_class, classes=count), layer, vision.patch_size, threshold=0.1)


# --- OmDet-Turbo ------------------------------------------------------------------------------------------------------


@_family("OmDetTurboForObjectDetection")
def _omdet(module: Any, tokenizer: Any, texts: Sequence[str]) -> Detector:
    """Every text is encoded by itself, and once more all of them as the task, "Detect cat, remote."."""
    most = module.config.text_config.max_position_embeddings
    classes = _encoded(tokenizer, texts, most)["input_ids"]
    task = _encoded(tokenizer, [f"Detect {', '.join(texts)}."], most)

    def propose(network: Any, images: Tensor) -> Tensor:
        # The network's own forward keeps embeddings of texts between calls, whatever becomes of its weights.
        ids, mask = (task[name].to(images.device) for name in ("input_ids", "attention_mask"))
        of_classes = network.language_backbone(classes.to(images.device), encode_type="class")
        of_task, mask = network.language_backbone(ids, mask=mask, encode_type="task")
        maps = network.encoder(network.vision_backbone(images), return_dict=True).extracted_states
        count = len(images)
        batch = of_classes[:, None].expand(-1, count, -1), of_task.expand(-1, count, -1), mask.expand(count, -1)
        output = network.decoder(maps, *batch, return_dict=True)
        logits, boxes = output.decoder_classes[-1], output.decoder_coords[-1]
        return pack(boxes_in_pixels(boxes, images), at_least_float32(logits).sigmoid())

    return Detector(len(texts), propose, partial(_best_apart, classes=len(texts)), "vision_backbone", threshold=0.3)


def _best_apart(output: Tensor, threshold: float, classes: int, iou: float = 0.5) -> list[Kept]:
    """Returns the best pairs of candidate and class, without those that overlap a better one of the class."""
    from torchvision.ops import batched_nms

    detections = []
    for image, pairs in zip(Candidates(output, classes).output, best_pairs(output, threshold, classes), strict=True):
        scores = image[pairs.index, 4 + pairs.label]
        chosen = batched_nms(image[pairs.index, :4], scores, pairs.label, iou)
        detections.append(Kept(pairs.index[chosen], pairs.label[chosen]))
    return detections

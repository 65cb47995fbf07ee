"""The networks of the zoo that Hugging Face transformers has, made from small configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from helpers import image_text

Call = Callable[[nn.Module, Tensor], Any]
Row = tuple[str, Callable[[], nn.Module], tuple[int, ...], "Call | None"]

WIDE, SQUARE = (3, 96, 128), (3, 64, 64)
HIDDEN = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
PATCHES = {**HIDDEN, "patch_size": 16, "num_labels": 5}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 24], "num_labels": 5}
WINDOWS = {
    **{"image_size": (96, 128), "embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 3},
    "num_labels": 5,
}
TEXT = {**HIDDEN, "vocab_size": 120, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = 100
"""The image token's number."""

# (the family in transformers' names, head, settings, shape)
CLASSIFIERS: list[tuple[str, str, dict[str, Any], tuple[int, ...]]] = [
    ("ViT", "", {**PATCHES, "image_size": (96, 128)}, WIDE),
    ("DeiT", "WithTeacher", {**PATCHES, "image_size": (96, 128)}, WIDE),
    ("Beit", "", {**PATCHES, "image_size": (96, 128)}, WIDE),
    ("Dinov2", "", {**PATCHES, "image_size": 96}, WIDE),
    ("Dinov2WithRegisters", "", {**PATCHES, "image_size": 96}, WIDE),
    ("ViTMSN", "", {**PATCHES, "image_size": (96, 128)}, WIDE),
    ("IJepa", "", {**PATCHES, "image_size": (96, 128)}, WIDE),
    ("Data2VecVision", "", {**PATCHES, "image_size": (96, 128)}, WIDE),
    ("Swin", "", WINDOWS, WIDE),
    ("Swinv2", "", WINDOWS, WIDE),
    ("Segformer", "", {"num_labels": 5, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 20, 24]}, WIDE),
    ("ConvNext", "", STAGES, WIDE),
    ("ConvNextV2", "", STAGES, WIDE),
    ("ResNet", "", {**STAGES, "embedding_size": 8}, WIDE),
    ("RegNet", "", {**STAGES, "embedding_size": 8, "groups_width": 4}, WIDE),
    (
        "EfficientNet",
        "",
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "num_labels": 5},
        WIDE,
    ),
    ("MobileNetV1", "", {"depth_multiplier": 0.25, "num_labels": 5}, WIDE),
    ("MobileNetV2", "", {"depth_multiplier": 0.35, "num_labels": 5}, WIDE),
    (
        "MobileViT",
        "",
        {"hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 8, 12, 16, 16, 20, 32], "num_labels": 5},
        WIDE,
    ),
    ("MobileViTV2", "", {"width_multiplier": 0.25, "num_labels": 5, "n_attn_blocks": [1, 1, 1]}, WIDE),
    (
        "Levit",
        "",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [1, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "num_labels": 5,
        },
        SQUARE,
    ),
    ("PoolFormer", "", {**STAGES, "depths": [1, 1, 1, 1]}, WIDE),
    (
        "Cvt",
        "",
        {
            "embed_dim": [8, 16, 24],
            "num_heads": [1, 2, 2],
            "depth": [1, 2, 3],
            "num_labels": 5,
            "cls_token": [False, False, True],
        },
        WIDE,
    ),
    (
        "Pvt",
        "",
        {
            "image_size": 64,
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "num_labels": 5,
        },
        SQUARE,
    ),
    (
        "PvtV2",
        "",
        {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "num_labels": 5,
            "image_size": 64,
        },
        WIDE,
    ),
    ("FocalNet", "", {"image_size": 96, "embed_dim": 12, "depths": [1, 1, 1, 1], "num_labels": 5}, WIDE),
    (
        "Bit",
        "",
        {
            "embedding_size": 32,
            "hidden_sizes": [32, 64, 64, 96],
            "num_groups": 8,
            "depths": [1, 1, 1, 1],
            "num_labels": 5,
        },
        WIDE,
    ),
    (
        "Hiera",
        "",
        {
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 1, 1],
            "num_heads": [1, 2, 4],
            "mask_unit_size": [4, 4],
            "query_stride": [2, 2],
            "num_query_pool": 2,
            "num_labels": 5,
        },
        SQUARE,
    ),
    (
        "SwiftFormer",
        "",
        {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "num_labels": 5},
        SQUARE,
    ),
    ("DonutSwin", "", WINDOWS, WIDE),
    ("HGNetV2", "", {"num_labels": 5}, SQUARE),
    ("TextNet", "", {"num_labels": 5}, WIDE),
]


def of(family: str, head: str, **settings: Any) -> nn.Module:
    """A network of a family with a head, from a configuration."""
    import transformers as T

    return getattr(T, family + head)(getattr(T, f"{family}Config")(**settings))


def perceiver(head: str) -> nn.Module:
    settings: dict[str, Any] = {"num_latents": 16, "d_latents": 32, "num_blocks": 1, "num_self_attends_per_block": 2}
    settings |= {"num_self_attention_heads": 2, "num_cross_attention_heads": 1, "num_labels": 5, "image_size": 16}
    return of("Perceiver", f"ForImageClassification{head}", **settings)


def clip() -> nn.Module:
    import transformers as T

    vision = {**HIDDEN, "image_size": 64, "patch_size": 16}
    text = {**HIDDEN, "vocab_size": 120, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    return T.CLIPModel(T.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))


def siglip(head: str) -> nn.Module:
    import transformers as T

    vision, text = {**HIDDEN, "image_size": 64, "patch_size": 16}, {**HIDDEN, "vocab_size": 120}
    return getattr(T, f"Siglip{head}")(T.SiglipConfig(vision_config=vision, text_config=text, num_labels=5))


def zero_shot(network: nn.Module, images: Tensor) -> Tensor:
    """The logits of five texts."""
    words = torch.arange(3, 28).view(5, 5)
    words[:, -1] = 2
    return network(input_ids=words, pixel_values=images).logits_per_image


def vilt(network: nn.Module, images: Tensor) -> Tensor:
    """The logits of a question's answers."""
    words = torch.arange(3, 9).expand(len(images), -1)
    mask = torch.ones(len(images), *images.shape[2:], dtype=torch.long)
    return network(input_ids=words, pixel_values=images, pixel_mask=mask).logits


def blip() -> nn.Module:
    import transformers as T

    vision = {**HIDDEN, "image_size": 64, "patch_size": 16}
    text = {**HIDDEN, "vocab_size": 120, "encoder_hidden_size": 32, "bos_token_id": 1, "pad_token_id": 0}
    return T.BlipForConditionalGeneration(T.BlipConfig(vision_config=vision, text_config={**text, "eos_token_id": 2}))


def last_word(network: nn.Module, images: Tensor) -> Tensor:
    """The logits after a text that says nothing of where the image is."""
    words = torch.arange(3, 9).expand(len(images), -1)
    return network(input_ids=words, pixel_values=images).logits[:, -1]


def reading(count: int, before: int = 2, after: int = 3, **more: Any) -> Call:
    """The logits of the next word after a prompt with so many image tokens."""

    def run(network: nn.Module, images: Tensor) -> Tensor:
        words = torch.tensor([[1, *range(3, 2 + before), *[IMAGE] * count, *range(10, 10 + after)]])
        given = {name: value(images, words) for name, value in more.items()}
        pixels = given.pop("pixel_values", images)
        return network(input_ids=words.expand(len(images), -1), pixel_values=pixels, **given).logits[:, -1]

    return run


def llava(strategy: str = "default", layer: int = -2) -> nn.Module:
    import transformers as T

    return T.LlavaForConditionalGeneration(
        T.LlavaConfig(
            vision_config=T.CLIPVisionConfig(**HIDDEN, image_size=64, patch_size=16),
            text_config=T.LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            vision_feature_layer=layer,
            vision_feature_select_strategy=strategy,
        )
    )


def paligemma() -> nn.Module:
    import transformers as T

    return T.PaliGemmaForConditionalGeneration(
        T.PaliGemmaConfig(
            vision_config=T.SiglipVisionConfig(**HIDDEN, image_size=64, patch_size=16, projection_dim=32),
            text_config=T.GemmaConfig(**TEXT, head_dim=16),
            image_token_index=IMAGE,
            projection_dim=32,
            vocab_size=120,
        )
    )


def idefics3() -> nn.Module:
    import transformers as T

    return T.Idefics3ForConditionalGeneration(
        T.Idefics3Config(
            vision_config={**HIDDEN, "image_size": 64, "patch_size": 16},
            text_config=T.LlamaConfig(**TEXT),
            image_token_id=IMAGE,
            scale_factor=2,
        )
    )


def internvl() -> nn.Module:
    import transformers as T

    return T.InternVLForConditionalGeneration(
        T.InternVLConfig(
            vision_config=T.InternVLVisionConfig(**HIDDEN, image_size=[64, 64], patch_size=[8, 8]),
            text_config=T.LlamaConfig(**TEXT),
            image_token_id=IMAGE,
            downsample_ratio=0.5,
        )
    )


def gemma3() -> nn.Module:
    import transformers as T

    return T.Gemma3ForConditionalGeneration(
        T.Gemma3Config(
            vision_config=T.SiglipVisionConfig(**HIDDEN, image_size=64, patch_size=8, vision_use_head=False),
            text_config=T.Gemma3TextConfig(**TEXT, head_dim=16, sliding_window=64),
            image_token_index=IMAGE,
            mm_tokens_per_image=16,
        )
    )


def qwen(name: str) -> nn.Module:
    import transformers as T

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text: dict[str, Any] = {**TEXT, "rope_parameters": rope, "max_position_embeddings": 256}
    vision: dict[str, Any] = {"depth": 3, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if name == "Qwen2VL":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 8}
    elif name == "Qwen2_5_VL":
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "patch_size": 8}
        vision |= {"window_size": 32, "fullatt_block_indexes": [2]}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "patch_size": 8}
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
        text["head_dim"] = 16
    config = getattr(T, f"{name}Config")(text_config=text, vision_config=vision, image_token_id=IMAGE)
    return getattr(T, f"{name}ForConditionalGeneration")(config)


def patches(images: Tensor, _words: Tensor) -> Tensor:
    """The image as Qwen's processor flattens it: patches of 8 pixels in blocks of 2 x 2, twice in time."""
    blocks = images[0].reshape(3, 4, 2, 8, 4, 2, 8).permute(1, 4, 2, 5, 0, 3, 6).reshape(64, 3, 1, 64)
    return blocks.expand(-1, -1, 2, -1).reshape(64, 384)


QWEN = reading(
    16,
    pixel_values=patches,
    image_grid_thw=lambda _images, _words: torch.tensor([[1, 8, 8]]),
    mm_token_type_ids=lambda _images, words: (words == IMAGE).long(),
)
GEMMA = {"token_type_ids": lambda _images, words: (words == IMAGE).long()}
IDEFICS = {"pixel_values": lambda images, _words: images[:, None]}


def uper_net() -> nn.Module:
    import transformers as T

    backbone = T.ConvNextConfig(**STAGES, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = T.UperNetConfig(backbone_config=backbone, hidden_size=16, num_labels=5, auxiliary_in_channels=16)
    return T.UperNetForSemanticSegmentation(config)


def mask2former() -> nn.Module:
    import transformers as T

    backbone = T.SwinConfig(**WINDOWS, out_features=["stage1", "stage2", "stage3", "stage4"])
    settings: dict[str, Any] = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "num_queries": 6}
    settings |= {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 32}
    settings |= {"encoder_feedforward_dim": 32, "num_labels": 5}
    return T.Mask2FormerForUniversalSegmentation(T.Mask2FormerConfig(backbone_config=backbone, **settings))


def semantic(network: nn.Module, images: Tensor) -> Tensor:
    """The map of classes that queries and their masks make."""
    found = network(pixel_values=images)
    classes = found.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("nqc,nqhw->nchw", classes, found.masks_queries_logits.sigmoid())


def vision_encoder_decoder() -> nn.Module:
    import transformers as T

    decoder = T.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=120, n_positions=64, add_cross_attention=True)
    encoder = T.ViTConfig(**{**PATCHES, "image_size": 64})
    return T.VisionEncoderDecoderModel(encoder=T.ViTModel(encoder), decoder=T.GPT2LMHeadModel(decoder))


def captioning(network: nn.Module, images: Tensor) -> Tensor:
    """The logits of a caption's next word."""
    words = torch.arange(3, 7).expand(len(images), -1)
    return network(pixel_values=images, decoder_input_ids=words).logits[:, -1]


def rows() -> Iterator[Row]:
    """Yields (name, builder, shape, call) of every network."""
    for family, head, settings, shape in CLASSIFIERS:
        full = f"ForImageClassification{head}"
        yield family + head, lambda f=family, h=full, s=settings: of(f, h, **s), shape, None
    for kind in ("Learned", "Fourier", "ConvProcessing"):
        yield f"Perceiver, {kind}", lambda k=kind: perceiver(k), (3, 16, 16), None
    image = {"vision_config": {**HIDDEN, "image_size": 64, "patch_size": 16}, "num_labels": 5}
    yield "CLIP classifier", lambda: of("CLIP", "ForImageClassification", **image), SQUARE, None
    yield "SigLIP classifier", lambda: siglip("ForImageClassification"), SQUARE, None
    yield "CLIP, zero-shot", clip, SQUARE, zero_shot
    yield "SigLIP, zero-shot", lambda: siglip("Model"), SQUARE, zero_shot
    answers = {**HIDDEN, "image_size": 64, "patch_size": 16, "vocab_size": 120, "num_labels": 5, "max_image_length": -1}
    yield "ViLT, answers", lambda: of("Vilt", "ForQuestionAnswering", **answers), SQUARE, vilt
    yield "BLIP, next word", blip, SQUARE, last_word
    yield "VisionEncoderDecoder", vision_encoder_decoder, SQUARE, captioning
    yield "LLaVA, layer -2", llava, SQUARE, reading(16)
    yield "LLaVA, class token kept", lambda: llava("full", -1), SQUARE, reading(17)
    yield "PaliGemma", paligemma, SQUARE, reading(16, before=1, **GEMMA)
    yield "Idefics3", idefics3, SQUARE, reading(4, **IDEFICS)
    yield "InternVL", internvl, SQUARE, reading(16)
    yield "Gemma3", gemma3, SQUARE, reading(16, **GEMMA)
    yield "Qwen2-VL", lambda: qwen("Qwen2VL"), SQUARE, QWEN
    yield "Qwen2.5-VL", lambda: qwen("Qwen2_5_VL"), SQUARE, QWEN
    yield "Qwen3-VL", lambda: qwen("Qwen3VL"), SQUARE, QWEN
    for family, shape in image_text.SHAPES.items():
        yield f"{family} on grids", lambda f=family: image_text.on_grids(f), shape, image_text.next_word
    small = {"num_labels": 5, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 20, 24], "decoder_hidden_size": 16}
    yield "SegFormer, segmentation", lambda: of("Segformer", "ForSemanticSegmentation", **small), WIDE, None
    yield "UperNet on ConvNext", uper_net, WIDE, None
    yield "Mask2Former on Swin", mask2former, WIDE, semantic

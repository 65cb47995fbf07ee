"""Image-text-to-text models of transformers with random weights, so small that a forward takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

IMAGE, START, END, VIDEO, VOCABULARY = 100, 101, 102, 103, 160
"""The ids of the image's token, of what stands before and after it, and of the video's token."""

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 2048,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "initializer_range": 0.2,
}
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def _llava(**values: Any) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION), text_config=LlamaConfig(**_TEXT), image_token_index=IMAGE, **values
    )
    return LlavaForConditionalGeneration(config)


def _vipllava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, VipLlavaConfig, VipLlavaForConditionalGeneration

    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=LlamaConfig(**_TEXT),
        image_token_index=IMAGE,
        vision_feature_layers=[-2, -1],
    )
    return VipLlavaForConditionalGeneration(config)


def _llava_next() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=LlamaConfig(**_TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[64, 128], [128, 64], [128, 128]],
    )
    return LlavaNextForConditionalGeneration(config)


def _llava_onevision() -> Any:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_VISION),
        text_config=Qwen2Config(**_TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[64, 128], [128, 64], [128, 128], [192, 192]],
        vision_aspect_ratio="anyres_max_4",
    )
    return LlavaOnevisionForConditionalGeneration(config)


def _qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14, "hidden_size": 32}
    config = Qwen2VLConfig(
        vision_config={**vision, "initializer_range": 0.2},
        text_config={**_TEXT, "rope_parameters": _ROPE},
        **_qwen_tokens(),
    )
    return Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(
        vision_config={**vision, "window_size": 56, "fullatt_block_indexes": [2], "initializer_range": 0.2},
        text_config={**_TEXT, "rope_parameters": _ROPE},
        **_qwen_tokens(),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen3VLConfig(
        vision_config={
            **vision,
            "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 64,
            "initializer_range": 0.2,
        },
        text_config={**_TEXT, "head_dim": 16, "rope_parameters": _ROPE},
        **_qwen_tokens(),
    )
    return Qwen3VLForConditionalGeneration(config)


def _qwen3_vl_moe() -> Any:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
    config = Qwen3VLMoeConfig(
        vision_config={
            **vision,
            "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 64,
            "initializer_range": 0.2,
        },
        text_config={**_TEXT, **experts, "head_dim": 16, "rope_parameters": _ROPE},
        **_qwen_tokens(),
    )
    return Qwen3VLMoeForConditionalGeneration(config)


def _qwen3_5() -> Any:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
    rope = {**_ROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}
    config = Qwen3_5Config(
        vision_config={**vision, "num_position_embeddings": 64, "initializer_range": 0.2},
        text_config={
            **_TEXT,
            **linear,
            "head_dim": 16,
            "rope_parameters": rope,
            "layer_types": ["linear_attention", "full_attention"],
        },
        **{name: value for name, value in _qwen_tokens().items() if name not in ("bos_token_id", "eos_token_id")},
    )
    return Qwen3_5ForConditionalGeneration(config)


def _qwen_tokens() -> dict[str, int]:
    return {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _idefics3() -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

    config = Idefics3Config(
        vision_config=_VISION,
        text_config=LlamaConfig(**_TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    return Idefics3ForConditionalGeneration(config)


def _smolvlm() -> Any:
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        vision_config=_VISION,
        text_config=LlamaConfig(**_TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    return SmolVLMForConditionalGeneration(config)


def _aya_vision() -> Any:
    from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration, Cohere2Config, SiglipVisionConfig

    config = AyaVisionConfig(
        vision_config=SiglipVisionConfig(**_VISION, vision_use_head=False),
        text_config=Cohere2Config(**_TEXT),
        image_token_index=IMAGE,
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
    )
    return AyaVisionForConditionalGeneration(config)


def _internvl() -> Any:
    from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

    config = InternVLConfig(
        vision_config={**_VISION, "image_size": [64, 64], "patch_size": [16, 16]},
        text_config=Qwen2Config(**_TEXT),
        image_token_id=IMAGE,
    )
    return InternVLForConditionalGeneration(config)


def _paligemma() -> Any:
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig

    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**_VISION, projection_dim=32),
        text_config=GemmaConfig(**_TEXT, head_dim=16),
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    return PaliGemmaForConditionalGeneration(config)


def _gemma3() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**_VISION),
        text_config=Gemma3TextConfig(**_TEXT, head_dim=16),
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        mm_tokens_per_image=4,
    )
    return Gemma3ForConditionalGeneration(config)


NETWORKS: dict[str, Callable[[], Any]] = {
    "llava": _llava,
    "vipllava": _vipllava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "qwen3_5": _qwen3_5,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "aya_vision": _aya_vision,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
}
"""The families by the name that transformers gives them (`config.model_type`)."""


def network_of(family: str, seed: int = 0) -> Any:
    """Returns a network of a family with random weights, in eval mode; the caller's random state stays as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = NETWORKS[family]().eval()
        with torch.no_grad():
            for weight in network.parameters():
                if weight.ndim > 1 and not weight.any():  # Gemma 3's projector begins at zero
                    weight.normal_(std=0.2)
    return network


_WORDS = [
    *(
        "is",
        "there",
        "a",
        "an",
        "the",
        "how",
        "many",
        "what",
        "colour",
        "of",
        "in",
        "picture",
        "cat",
        "dog",
        "red",
        "blue",
    ),
    *("green", "circle", "square", "no", "yes", "one", "two", "three", "?", ".", ",", ":", "user", "assistant"),
]
_SPECIAL = {
    "llava": ("<image>",),
    "qwen": ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
    "idefics3": ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
    "internvl": ("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
    "aya_vision": ("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_GLOBAL", "<image>"),
    "gemma3": ("<image_soft_token>", "<start_of_image>", "<end_of_image>"),
}
"""The special tokens of families, from the id `IMAGE` on."""
_TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% for c in m.content %}{% if c.type == 'image' %}PLACE{% else %}"
    "{{ c.text }}{% endif %} {% endfor %}{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


def tokenizer_of(kind: str) -> Any:
    """Returns a tokenizer of whole words with `VOCABULARY` entries and the special tokens of a kind of families."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {IMAGE + i: token for i, token in enumerate(_SPECIAL[kind])}
    rows = (
        {110 + 4 * r + c: f"<row_{r + 1}_col_{c + 1}>" for r in range(4) for c in range(4)}
        if kind == "idefics3"
        else {}
    )
    named = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", 4: "\n", **special, **rows}
    words = iter([*_WORDS, *(f"w{i}" for i in range(VOCABULARY))])
    vocabulary = {named.get(i) or next(words): i for i in range(VOCABULARY)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([*special.values(), *rows.values(), "\n"])
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    names = {
        "llava": {"image_token": 100},
        "qwen": {"image_token": 100, "vision_start_token": 101, "vision_end_token": 102, "video_token": 103},
        "idefics3": {
            "image_token": 100,
            "fake_image_token": 101,
            "end_of_utterance_token": 102,
            "global_image_token": 103,
        },
        "internvl": {"context_image_token": 100, "start_image_token": 101, "end_image_token": 102, "video_token": 103},
        "aya_vision": {},
        "gemma3": {"image_token": 100, "boi_token": 101, "eoi_token": 102},
    }[kind]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={name: named[i] for name, i in names.items()},
    )


def processor_of(family: str, template: bool = True) -> Any:
    """Returns the processor of a family for the networks here. `template`: whether it has a chat template."""
    import transformers as t

    kind = "qwen" if family.startswith("qwen") else {"smolvlm": "idefics3"}.get(family, family)
    tokenizer = tokenizer_of(kind if kind in _SPECIAL else "llava")
    side = {"height": 64, "width": 64}
    place = {"internvl": "<IMG_CONTEXT>", "gemma3": "<start_of_image>"}.get(family, "<image>")
    place = "<|vision_start|><|image_pad|><|vision_end|>" if kind == "qwen" else place
    values: dict[str, Any] = {"chat_template": _TEMPLATE.replace("PLACE", place) if template else None}
    if family in ("llava", "vipllava"):
        images = t.LlavaImageProcessor(size={"shortest_edge": 64}, crop_size=side)
        return t.LlavaProcessor(
            images,
            tokenizer,
            patch_size=16,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            **values,
        )
    if family in ("llava_next", "llava_onevision"):
        name = {"llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}[family]
        pinpoints = network_of(family).config.image_grid_pinpoints
        if family == "llava_next":
            images = t.LlavaNextImageProcessor(
                size={"shortest_edge": 64}, crop_size=side, image_grid_pinpoints=pinpoints
            )
            return t.LlavaNextProcessor(
                images,
                tokenizer,
                patch_size=16,
                vision_feature_select_strategy="default",
                num_additional_image_tokens=1,
                **values,
            )
        images = t.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=pinpoints)
        videos = t.LlavaOnevisionVideoProcessor(size=side)
        return getattr(t, f"{name}Processor")(
            images,
            tokenizer,
            video_processor=videos,
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_4",
            **values,
        )
    if kind == "qwen":
        patch = 16 if family.startswith("qwen3") else 14
        size = {"shortest_edge": 4 * 28**2, "longest_edge": 40 * 28**2}
        images = t.Qwen2VLImageProcessor(size=size, patch_size=patch)
        videos = {
            "qwen2_vl": t.Qwen2VLVideoProcessor,
            "qwen2_5_vl": t.Qwen2VLVideoProcessor,
            "qwen3_vl": t.Qwen3VLVideoProcessor,
        }
        cls = {"qwen2_vl": t.Qwen2VLProcessor, "qwen2_5_vl": t.Qwen2_5_VLProcessor, "qwen3_vl": t.Qwen3VLProcessor}
        kind = {"qwen3_vl_moe": "qwen3_vl", "qwen3_5": "qwen3_vl"}.get(family, family)
        return cls[kind](images, tokenizer, video_processor=videos[kind](), **values)
    if kind == "idefics3":
        tiles = {"size": {"longest_edge": 192}, "max_image_size": {"longest_edge": 64}}
        if family == "idefics3":
            return t.Idefics3Processor(t.Idefics3ImageProcessor(**tiles), tokenizer, image_seq_len=4, **values)
        videos = t.SmolVLMVideoProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 64})
        return t.SmolVLMProcessor(
            t.SmolVLMImageProcessor(**tiles), tokenizer, video_processor=videos, image_seq_len=4, **values
        )
    if family == "aya_vision":
        images = t.GotOcr2ImageProcessor(size=side, max_patches=6)
        return t.AyaVisionProcessor(images, tokenizer, patch_size=16, img_size=64, downsample_factor=2, **values)
    if family == "internvl":
        images = t.GotOcr2ImageProcessor(size=side, max_patches=6)
        return t.InternVLProcessor(images, tokenizer, t.InternVLVideoProcessor(size=side), image_seq_length=4, **values)
    if family == "paligemma":
        images = t.SiglipImageProcessor(size=side, image_seq_length=16)
        return t.PaliGemmaProcessor(images, tokenizer, chat_template=None)
    images = t.Gemma3ImageProcessor(size=side)
    return t.Gemma3Processor(images, tokenizer, image_seq_length=4, **values)


FAMILIES = tuple(NETWORKS)
SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("llava", "paligemma"), (3, 64, 64)),
    "qwen2_vl": (3, 112, 168),
    "qwen2_5_vl": (3, 112, 168),
    "qwen3_vl": (3, 128, 192),
    **dict.fromkeys(("llava_next", "llava_onevision", "internvl"), (3, 72, 120)),
    **dict.fromkeys(("idefics3", "smolvlm"), (3, 128, 192)),
}
"""Pictures (C, H, W) that the families take, of many cells."""


def on_grids(family: str) -> Any:
    """Returns a network of a family as konkyo runs it, without its processor."""
    from konkyo.models.vision_language.families import form_of
    from konkyo.models.vision_language.network import ImageTextNetwork

    network = network_of(family)
    return ImageTextNetwork(network, form_of(network.config)[0]).eval()


def next_word(network: Any, images: Any) -> Any:
    """Returns the logits (N, V) of the next word after a prompt whose image tokens lie between words."""
    count = network.form.layout(tuple(images.shape[2:])).count
    ids = torch.tensor([1, 7, *[IMAGE] * count, 9, 10, 11])
    return network.read(network.look(images), ids, ())[:, -1]


QUESTION = "is there a cat in the picture ?"


def asked(family: str, question: str = QUESTION, network: Any = None, longest: int = 4) -> Any:
    """Returns a `konkyo.Model` of a family that is asked a question, and answers with `longest` tokens at most."""
    from dataclasses import replace

    import konkyo

    model = konkyo.Model(network or network_of(family), processor=processor_of(family)).prompted(question=question)
    return replace(model, task=replace(model.task, longest=longest))  # type: ignore[call-arg]


def picture_of(size: tuple[int, int] = (200, 120)) -> Any:
    """Returns a picture (width, height) of drawn figures and some noise."""
    import numpy as np
    from PIL import Image, ImageDraw

    width, height = size
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(60, 120, (height, width, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 8, height // 6, width // 3, height // 2), fill=(220, 40, 40))
    draw.rectangle((width // 2, height // 2, width * 4 // 5, height * 5 // 6), fill=(30, 80, 230))
    return image

"""Small open-vocabulary detectors with random weights, and tokenizers of a few words. Skips without transformers."""

from __future__ import annotations

import string
from typing import Any

import pytest
import torch
from torch import Tensor, nn

T = pytest.importorskip("transformers")

QUERIES = 12
WORDS = ("a", "cat", "dog", "left", "remote", "red", "control", "detect")
SWIN = {
    **{"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4, "patch_size": 4},
    **{"out_features": ["stage2", "stage3", "stage4"]},
}
BERT = {
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    **{"vocab_size": 1100, "max_position_embeddings": 64},
}
DINO = {
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": QUERIES, "max_text_len": 24},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
}
TOWER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
ENDS = {"bos_token_id": 198, "eos_token_id": 199}
OWL_TEXT = {**TOWER, "num_hidden_layers": 1, "vocab_size": 200, "max_position_embeddings": 16}
OMDET = {
    **{"encoder_hidden_dim": 32, "decoder_hidden_dim": 32, "class_embed_dim": 48, "text_projection_in_dim": 48},
    **{"text_projection_out_dim": 48, "task_encoder_hidden_dim": 32, "num_queries": QUERIES, "image_size": 96},
    **{"vision_features_channels": [32] * 3, "encoder_in_channels": [16, 32, 64], "encoder_attention_heads": 2},
    **{"encoder_dim_feedforward": 32, "decoder_num_heads": 2, "decoder_num_layers": 2, "decoder_dim_feedforward": 32},
}

NAMES = ("GroundingDino", "MMGroundingDino", "OwlViT", "Owlv2", "OmDetTurbo")
SIZES = dict.fromkeys(NAMES, (96, 128)) | dict.fromkeys(("OwlViT", "Owlv2"), (96, 96))


def network(name: str, seed: int = 0, *, usual: bool = False) -> nn.Module:
    """A network whose scores differ between texts, places and images; or with the library's usual random weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = getattr(T, f"{name}ForObjectDetection")(_config(name))
        for key, part in (
            () if usual else module.named_modules()
        ):  # fresh ones are nearly blind, and their box heads are zero
            if isinstance(part, (nn.Linear, nn.Conv2d)) and "sampling_offsets" not in key:
                nn.init.kaiming_normal_(part.weight)
            if isinstance(part, nn.BatchNorm2d):
                nn.init.ones_(part.weight)
            if isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight)
    return module.eval()


def _config(name: str) -> Any:
    kind = getattr(T, f"{name}Config")
    if "Dino" in name:
        return kind(backbone_config=T.SwinConfig(**SWIN), text_config=T.BertConfig(**BERT), **DINO)
    if "Owl" in name:
        text = {**OWL_TEXT, **ENDS}
        return kind(text_config=text, vision_config={**TOWER, "image_size": 96, "patch_size": 16}, projection_dim=32)
    text = T.CLIPTextConfig(**{**OWL_TEXT, "hidden_size": 48, "max_position_embeddings": 77}, **ENDS)
    backbone = T.SwinConfig(**SWIN, image_size=96)  # timm's, of the published ones, is channels-last
    return kind(backbone_config=backbone, text_config=text, apply_layernorm_after_vision_backbone=False, **OMDET)


def tokenizer(name: str) -> Any:
    """BERT's or CLIP's own tokenizer with few words, and letters for all others."""
    if "Dino" in name:
        words = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
        words |= {word: 200 + i for i, word in enumerate(WORDS)}
        words |= {f"##{letter}": 300 + i for i, letter in enumerate(string.ascii_lowercase)}
        words |= {letter: 400 + i for i, letter in enumerate(string.ascii_lowercase) if letter != "a"}
        return T.BertTokenizer(vocab=words)
    words = {"!": 0, "<|startoftext|>": 198, "<|endoftext|>": 199}
    words |= {f"{letter}</w>": 10 + i for i, letter in enumerate(string.ascii_lowercase + ".,")}
    words |= {letter: 50 + i for i, letter in enumerate(string.ascii_lowercase + ".,")}
    return T.CLIPTokenizer(vocab=words, merges=[], pad_token="!", model_max_length=16)


def processor(name: str, **image: Any) -> Any:
    """The library's own processor with the tokenizer."""
    kinds = {"MMGroundingDino": "GroundingDino"}
    images = {"OmDetTurbo": "DetrImageProcessorPil"}
    family = kinds.get(name, name)
    if family == "OmDetTurbo":
        image = {"size": {"height": 96, "width": 128}, **image}
    if "Owl" in name:
        image = {"size": {"height": 96, "width": 96}, **image}
    of_images = getattr(T, images.get(family, f"{family}ImageProcessorPil"))(**image)
    return getattr(T, f"{family}Processor")(image_processor=of_images, tokenizer=tokenizer(name))


def pictures(name: str, count: int = 2, seed: int = 3) -> Tensor:
    """Images of few large patches, so that they differ for the network."""
    coarse = torch.randn(count, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=SIZES[name], mode="bilinear") * 2

"""Small image-text models of transformers, built from configs, and a tokenizer of a few words."""

from __future__ import annotations

from typing import Any

from torch import nn

WORDS = ("a", "photo", "of", "the", "cat", "dog", "red", "blue", "left", "right", "drawing", "two", "in", "on")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {**SIZES, "vocab_size": 40, "max_position_embeddings": 12, "pad_token_id": 0, "bos_token_id": 1}


def tokenizer() -> Any:
    """A tokenizer that cuts at spaces; it ends texts with the token that CLIP reads them at."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<bos>", "<unk>", *WORDS, "<eos>"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<bos>", 1), ("<eos>", vocabulary["<eos>"])]
    words.post_processor = processors.TemplateProcessing("<bos> $A <eos>", special_tokens=ends)
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=12, **names)


def end() -> int:
    return len(WORDS) + 3


def clip() -> nn.Module:
    import transformers as T

    vision = {**SIZES, "image_size": 64, "patch_size": 16}
    config = T.CLIPConfig(vision_config=vision, text_config={**TEXT, "eos_token_id": end()}, projection_dim=24)
    return T.CLIPModel(config).eval()


def siglip() -> nn.Module:
    import transformers as T

    vision = {**SIZES, "image_size": 64, "patch_size": 16}
    text = {**TEXT, "eos_token_id": end(), "projection_size": 32}
    return T.SiglipModel(T.SiglipConfig(vision_config=vision, text_config=text)).eval()


def siglip2() -> nn.Module:
    """SigLIP 2 for pictures of any shape: up to 16 patches, whose places are stretched from a grid of 4 x 4."""
    import transformers as T

    vision = {**SIZES, "num_patches": 16, "patch_size": 16}
    text = {**TEXT, "eos_token_id": end(), "projection_size": 32}
    return T.Siglip2Model(T.Siglip2Config(vision_config=vision, text_config=text)).eval()

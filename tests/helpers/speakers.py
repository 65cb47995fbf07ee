"""Tiny networks that answer in words, of random weights, with tokenizers made of a list of words."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[BOS]"]
WORDS += [
    "a",
    "the",
    "cat",
    "dog",
    "on",
    "mat",
    "red",
    "blue",
    "yes",
    "no",
    "how",
    "many",
    "what",
    "is",
    "there",
    "two",
]
WORDS += ["three", "umbrella", "##s", "?"]
SIZE, PATCH = 32, 8


def tokenizer() -> Any:
    """Returns a tokenizer of words and their parts, as BERT has one."""
    from transformers import BertTokenizerFast, PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = __import__("tokenizers").decoders.WordPiece()
    core.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    del BertTokenizerFast
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


def _seeded(build: Any, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module: nn.Module = build()
        for parameter in module.parameters():  # usual initial weights hardly look at the image
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.15)
        return module.eval()


def blip_config() -> Any:
    """Returns the config of a BLIP with 16 patches and a text of the same width."""
    from transformers import BlipConfig

    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "encoder_hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 80,
        "bos_token_id": 4,
        "eos_token_id": 2,
        "sep_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    return BlipConfig(text_config=text, vision_config=vision)


def blip_captioner(seed: int = 0) -> nn.Module:
    """Returns a BLIP that describes images."""
    from transformers import BlipForConditionalGeneration

    return _seeded(lambda: BlipForConditionalGeneration(blip_config()), seed)


def blip_answerer(seed: int = 0) -> nn.Module:
    """Returns a BLIP that answers questions."""
    from transformers import BlipForQuestionAnswering

    return _seeded(lambda: BlipForQuestionAnswering(blip_config()), seed)


def git(seed: int = 0) -> nn.Module:
    """Returns a GIT."""
    from transformers import GitConfig, GitForCausalLM

    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    config = GitConfig(
        vision_config=vision,
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=80,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _seeded(lambda: GitForCausalLM(config), seed)


def encoder_decoder(seed: int = 0) -> nn.Module:
    """Returns a ViT that a GPT-2 reads."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    vit = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
    )
    gpt2 = GPT2Config(
        vocab_size=len(WORDS), n_embd=24, n_layer=2, n_head=2, n_positions=80, bos_token_id=1, eos_token_id=2
    )

    def build() -> Any:
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, gpt2)
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
        return VisionEncoderDecoderModel(config)

    return _seeded(build, seed)


def vilt(seed: int = 0) -> nn.Module:
    """Returns a ViLT with four answers."""
    from transformers import ViltConfig, ViltForQuestionAnswering

    config = ViltConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
        max_position_embeddings=40,
        num_labels=4,
        id2label={0: "yes", 1: "no", 2: "two", 3: "red"},
        label2id={"yes": 0, "no": 1, "two": 2, "red": 3},
    )
    return _seeded(lambda: ViltForQuestionAnswering(config), seed)

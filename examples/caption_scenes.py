"""A small network that says in words what is on a drawn scene, for trying maps of words.

    python examples/caption_scenes.py         # trains it, for minutes on one core, and measures maps of its words
    konkyo explain scene.png --model examples/caption_scenes.py:build --target words --out why

It names the objects from left to right, as in "a cat and a taxi and a tulip". Its image encoder is that of the shipped
classifier and stays as it is; a GPT-2 of two blocks, which looks at the encoder's 8 x 8 cells, is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import konkyo
from konkyo.data.sets.scenes import CLASSES, Scene, Scenes
from konkyo.tasks.answers import AnswerTask, Speaker, Vocabulary

WEIGHTS = Path(__file__).with_suffix(".safetensors")
SPECIAL = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
WORDS = (*SPECIAL, "a", "and", *CLASSES)
LENGTH = 16


class Captioner(nn.Module):
    """An encoder puts out cells (N, C, 8, 8), which a text decoder reads."""

    def __init__(self) -> None:
        super().__init__()
        shipped: Any = konkyo.load("konkyo/scenes-classifier").module
        stages = [getattr(shipped, name) for name in ("stem", "stage1", "stage2", "stage3", "stage4")]
        self.encoder = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(8))
        self.project = nn.Linear(144, 96)
        self.places = nn.Parameter(torch.zeros(64, 96))
        sizes = {"n_positions": LENGTH + 2, "n_embd": 96, "n_layer": 2, "n_head": 4}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        self.decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(WORDS), bos_token_id=1, eos_token_id=2, add_cross_attention=True, **sizes, **dropout
            )
        )

    def cells(self, features: Tensor) -> Tensor:
        """Returns what the decoder reads (N, 64, 96) of the encoder's features (N, 144, 8, 8)."""
        return self.project(features.flatten(2).transpose(1, 2)) + self.places

    def forward(self, images: Tensor) -> Tensor:
        return self.cells(self.encoder(images))


@dataclass(frozen=True)
class CaptionSpeaker(Speaker):
    """It tells konkyo how the network speaks: the encoder once, then the decoder for every answer."""

    reader: ClassVar[str] = "encoder"

    def encode(self, module: nn.Module, images: Tensor, question: str) -> Tensor:
        del question  # it is asked nothing
        return module(images)

    def logits(self, module: Any, encoded: Tensor, answer: Sequence[int]) -> Tensor:
        ids = torch.tensor([1, *answer], device=encoded.device).expand(len(encoded), -1)
        return module.decoder(ids, encoder_hidden_states=encoded, use_cache=False).logits


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]")


def caption(scene: Scene) -> str:
    """Returns the objects of a scene from left to right, as in "a cat and a taxi"."""
    centres = (scene.boxes[:, 0] + scene.boxes[:, 2]).tolist()
    order = sorted(range(len(centres)), key=centres.__getitem__)
    return " and ".join(f"a {CLASSES[int(scene.labels[k])]}" for k in order)


def train(network: Captioner, scenes: Scenes, epochs: int) -> None:
    """Trains all but the encoder, on features that are computed once."""
    preprocess = konkyo.load("konkyo/scenes-classifier").preprocess
    network.encoder.eval().requires_grad_(False)
    features, texts, words = [], [], tokenizer()
    for scene in scenes:
        with torch.no_grad():
            features.append(network.encoder(preprocess(scene.image)[None]).half())
        ids = [1, *words(caption(scene), add_special_tokens=False).input_ids, 2]
        texts.append(torch.tensor(ids + [0] * (LENGTH + 1 - len(ids))))
    seen, said = torch.cat(features), torch.stack(texts)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 2e-3, weight_decay=0.05)
    steps = epochs * -(-len(seen) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    network.train()
    network.encoder.eval()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(seen)).split(64):
            ids = said[rows]
            logits = network.decoder(ids[:, :-1], encoder_hidden_states=network.cells(seen[rows].float())).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1}: loss {total / len(seen):.3f}", flush=True)
    network.eval()


def build(scenes: int = 3000, epochs: int = 30) -> konkyo.Model:
    """Returns the network, trained; weights beside this file are read, or written."""
    torch.manual_seed(0)
    network = Captioner()
    if WEIGHTS.is_file():
        network.load_state_dict(load_file(WEIGHTS))
    else:
        train(network, Scenes(scenes, seed=1, objects=(1, 3)), epochs)
        state = {name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}
        save_file(state, WEIGHTS)
    speaker = CaptionSpeaker(Vocabulary(tokenizer(), frozenset({2})))
    preprocess = konkyo.load("konkyo/scenes-classifier").preprocess
    task = AnswerTask(speaker, longest=LENGTH)
    return konkyo.Model(network.eval(), preprocess=preprocess, task=task, name="scene captioner")


def measure(model: konkyo.Model, count: int = 100) -> None:
    """Prints how many captions are right, and how much of a noun's map lies on what it names."""
    right, shares, areas, others = 0, [], [], []
    for scene in Scenes(count, seed=2, objects=2):
        names = caption(scene).replace("a ", "").split(" and ")
        result = konkyo.explain(model, scene.image, target=konkyo.EachToken())
        text = result.passages[0].response.text.strip()
        right += text == caption(scene)
        if text != caption(scene) or len(set(names)) < 2:
            continue
        maps = result.at((128, 128))
        for k, name in enumerate(names):
            row = list(result.labels).index(name)
            mask = scene.masks[[CLASSES[int(i)] for i in scene.labels].index(name)]
            other = scene.masks[[CLASSES[int(i)] for i in scene.labels].index(names[1 - k])]
            total = float(maps[row].sum())
            if total > 0:
                shares.append(float(maps[row][mask].sum()) / total)
                others.append(float(maps[row][other].sum()) / total)
                areas.append(float(mask.float().mean()))
    mean = lambda values: sum(values) / max(len(values), 1)  # noqa: E731
    print(f"captions right: {right / count:.2f} of {count} unseen scenes with two objects")
    print(f"a noun's map on the object it names: {mean(shares):.2f}, on the other one: {mean(others):.2f}")
    print(f"share of the picture that an object has: {mean(areas):.2f} ({len(shares)} nouns of right captions)")


if __name__ == "__main__":
    measure(build())

"""Network: an image-text-to-text model of transformers as one of an image tensor, with its image tokens on grids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from konkyo.errors import KonkyoError
from konkyo.models.vision_language.forms import Form, Layout

_GREEDY: dict[str, Any] = {
    **{"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0},
    **{"no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "min_length": 0},
    **{"min_new_tokens": None, "sequence_bias": None, "begin_suppress_tokens": None, "forced_eos_token_id": None},
    **{"guidance_scale": None, "renormalize_logits": False},
}
"""What makes the answer the highest token at every place, whatever the checkpoint's own settings ask for."""


class ImageGrid(nn.Module):
    """It puts the image's tokens on grids over the picture. Its output is the layer that is explained."""

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor | tuple[Tensor, ...]:
        """Returns the grid (N, C, h, w) of tokens (N, K, C), or several of one picture, the finest first."""
        grids = tuple(tokens[:, place.to(tokens.device)].movedim(-1, 1) for place in layout.places)
        return grids[0] if len(grids) == 1 else grids


@dataclass(frozen=True, eq=False)
class Picture:
    """Pictures as the text model gets them: the image's features, and what else its forward takes of them."""

    features: Any
    count: int
    """How many tokens one picture has."""
    others: dict[str, Tensor]
    """`image_grid_thw`, for the positions of Qwen-VL's tokens."""

    def __len__(self) -> int:
        pooled = self.features.pooler_output
        return len(pooled) if isinstance(pooled, (list, tuple)) else pooled.numel() // (self.count * pooled.shape[-1])


class ImageTextNetwork(nn.Module):
    """It runs a model of transformers on pictures (N, 3, H, W): first its image's part, then its text's part.

    `form` cuts the pictures. In between the image's tokens lie on grids, in the submodule `image_grid`: that is where
    they are explained. What else reaches the text model of the image (Qwen3-VL's features of earlier blocks, which it
    adds to its own) lies there as further channels of the same cells.
    """

    def __init__(self, network: nn.Module, form: Form) -> None:
        super().__init__()
        self.network = network
        self.image_grid = ImageGrid()
        self.form = form
        self._takes = frozenset(signature(network.forward).parameters)
        if "mm_encoder_outputs" not in self._takes:
            raise KonkyoError(
                f"a {type(network).__name__} whose forward takes the image's features (mm_encoder_outputs) was "
                "expected, as in transformers 5.24"
            )

    @property
    def config(self) -> Any:
        """Returns the config of the model of transformers."""
        return self.network.config

    def look(self, images: Tensor) -> Picture:
        """Returns what the text model gets of pictures. KonkyoError: another size or number of tokens than expected."""
        inputs: dict[str, Tensor] = self.form.inputs(images)
        features = self.network.get_image_features(**inputs, return_dict=True)  # type: ignore[operator]
        layout = self.form.layout((int(images.shape[-2]), int(images.shape[-1])))
        deep: Sequence[Any] = getattr(features, "deepstack_features", None) or ()
        parts = [_stacked(part, layout.count) for part in (features.pooler_output, *deep)]
        tokens = self._through_grid(torch.cat(parts, -1), layout)
        widths = [part.shape[-1] for part in parts]
        first, *others = (
            _like(part, old)
            for part, old in zip(torch.split(tokens, widths, -1), (features.pooler_output, *deep), strict=True)
        )
        grid = inputs.get("image_grid_thw")
        return Picture(
            _features(features, first, others),
            layout.count,
            {} if grid is None else {"image_grid_thw": grid[:1].expand(len(tokens), -1)},
        )

    def _through_grid(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Returns the tokens (N, K, C) as the grids hold them; those that are no places stay."""
        grids = self.image_grid(tokens, layout)
        for grid, place in zip(grids if isinstance(grids, tuple) else (grids,), layout.places, strict=True):
            number = max(len(grid), len(tokens))
            cells = grid.flatten(2).transpose(1, 2).expand(number, -1, -1)
            tokens = tokens.expand(number, -1, -1).index_copy(1, place.flatten().to(tokens.device), cells)
        return tokens

    def read(self, picture: Picture, ids: Tensor, answer: Sequence[int]) -> Tensor:
        """Returns the logits (N, T + 1, V) at the places of an answer of T tokens after a prompt (L,) of ids.

        KonkyoError: a prompt with another number of image tokens than the pictures have, or an answer with any.
        """
        self._check(ids, answer, picture.count)
        whole = torch.cat([ids, ids.new_tensor(list(answer))]).expand(len(picture), -1)
        images = (whole == self.config.image_token_id).long()
        with self._positions():
            output = self.network(
                input_ids=whole,
                attention_mask=torch.ones_like(whole),
                mm_encoder_outputs={"image": picture.features},
                use_cache=False,
                return_dict=True,
                **picture.others,
                **self._types(images, len(ids)),
            )
        logits: Tensor = output.logits[:, len(ids) - 1 :]
        return logits

    def generate(self, images: Tensor, ids: Tensor, longest: int, ends: frozenset[int]) -> tuple[int, ...]:
        """Returns the ids that the model itself answers greedily to one picture (1, 3, H, W) and a prompt (L,).

        An image token is no answer, so none is given.
        """
        prompt = ids[None]
        with self._positions():
            output: Tensor = self.network.generate(  # type: ignore[operator]
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                **self.form.inputs(images),
                **self._types((prompt == self.config.image_token_id).long(), len(ids)),
                **_GREEDY,
                max_new_tokens=longest,
                eos_token_id=sorted(ends) or None,
                suppress_tokens=[self.config.image_token_id],
            )
        answer = [int(i) for i in output[0, len(ids) :]]
        return tuple(answer[:-1] if answer and answer[-1] in ends else answer)

    def _check(self, ids: Tensor, answer: Sequence[int], count: int) -> None:
        token = self.config.image_token_id
        there = int((ids == token).sum())
        if there != count:
            raise KonkyoError(
                f"a prompt with {count} image tokens (of id {token}) was expected for pictures of this size; got "
                f"{there}"
            )
        if token in answer:
            raise KonkyoError(f"an answer without image tokens (of id {token}) was expected; got {list(answer)}")

    def _types(self, images: Tensor, prompt: int) -> dict[str, Tensor]:
        """Returns what kind each token is of, as the families want it. `images` (N, L): 1 at image tokens."""
        if "mm_token_type_ids" in self._takes:
            return {"mm_token_type_ids": images}
        if "token_type_ids" not in self._takes:
            return {}
        if self.config.model_type == "paligemma":  # 0 is the prompt, which reads itself in both directions
            answer = torch.arange(images.shape[1], device=images.device) >= prompt
            return {"token_type_ids": answer.long().expand_as(images)}
        return {"token_type_ids": images}

    @contextmanager
    def _positions(self) -> Iterator[None]:
        """Within the context nothing is known of earlier prompts, and what is noted of this one is taken back.

        Qwen-VL notes on itself where the text's positions went on after the last image.
        """
        noted = vars(getattr(self.network, "model", self.network))
        before = {name: noted[name] for name in noted.keys() & {"rope_deltas"}}
        try:
            noted.update(dict.fromkeys(before))
            yield
        finally:
            noted.update(before)


def _features(old: Any, pooled: Any, deep: Sequence[Any]) -> Any:
    """Returns features as the forward takes them, with these tokens."""
    if deep:
        return type(old)(pooler_output=pooled, deepstack_features=list(deep))
    return import_module("transformers.modeling_outputs").BaseModelOutputWithPooling(pooler_output=pooled)


def _stacked(features: Any, count: int) -> Tensor:
    """Returns the tokens (N, K, C) of pictures, which the families give as a list or a tensor, of tiles perhaps.

    KonkyoError: another number of tokens than the form expects.
    """
    if isinstance(features, Tensor):
        fits = features.numel() // features.shape[-1] % count == 0
        tokens = features.reshape(-1, count, features.shape[-1]) if fits else features
    else:
        tokens = torch.stack(list(features))
    if tokens.shape[1] != count:
        raise KonkyoError(f"{count} tokens of a picture were expected; the image's part put out {tokens.shape[1]}")
    return tokens


def _like(tokens: Tensor, features: Any) -> Any:
    """Returns tokens (N, K, C) in the form in which the family gave its features."""
    if isinstance(features, Tensor):
        return tokens.reshape(-1, features.shape[-2], tokens.shape[-1])
    return list(tokens)

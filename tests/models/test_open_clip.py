"""open_clip's models with texts for classes: logits, pictures and maps against the library's own."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import konkyo
from konkyo.errors import KonkyoError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library's own imports
    library = pytest.importorskip("open_clip")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
TEXTS = ["a red cat", "a dog", "an owl"]


def network(**more: Any) -> Any:
    torch.manual_seed(0)
    vision = library.CLIPVisionCfg(layers=3, width=64, head_width=32, patch_size=16, image_size=64)
    text = library.CLIPTextCfg(context_length=16, vocab_size=49408, width=32, heads=2, layers=1)
    module = library.model.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, **more).eval()
    for name, parameter in module.named_parameters():  # fresh ones say the same of all texts
        if "embedding" in name or "projection" in name:
            torch.nn.init.normal_(parameter)
    return module


def words() -> Any:
    return library.SimpleTokenizer(context_length=16)


@pytest.mark.parametrize("bias", [None, -10.0])
def test_the_logits_are_those_of_the_library(bias: float | None) -> None:
    module = network(init_logit_bias=bias)
    model = konkyo.Model(module, processor=words()).prompted(texts=TEXTS)
    assert (model.classes, model.multilabel) == (tuple(TEXTS), bias is not None)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        image, text, scale = module(images, words()(TEXTS))[:3]
    expected = scale * image @ text.T + (bias or 0.0)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    result = konkyo.explain(model, images, target="a dog", method="grad_cam")
    torch.testing.assert_close(result.scores, expected[:, 1], rtol=1e-4, atol=1e-4)
    assert result.maps.shape == (2, 4, 4)
    assert result.layer != "visual.transformer.resblocks.2"  # behind it only the class token has a gradient


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("size", [(70, 91), (131, 37), (200, 301)])
def test_pictures_are_prepared_as_the_library_does(mode: str, size: tuple[int, int]) -> None:
    module = network()
    told = {"size": (64, 64), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bicubic"}
    library.set_model_preprocess_cfg(module, {**told, "resize_mode": mode, "mode": "RGB", "fill_color": 0})
    model = konkyo.Model(module, processor=words())
    assert model.preprocess is not None
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    own = library.image_transform((64, 64), False, told["mean"], told["std"], mode, "bicubic")
    torch.testing.assert_close(model.preprocess(picture), own(picture), rtol=0, atol=1e-5)


def test_what_is_missing_is_told() -> None:
    module = network()
    assert konkyo.Model(module).preprocess is None
    with pytest.raises(KonkyoError, match=r"processor=open_clip\.get_tokenizer"):
        konkyo.Model(module).prompted(texts=TEXTS)
    with pytest.raises(KonkyoError, match="up to 16 tokens; longer is 'cat cat"):
        konkyo.Model(module, processor=words()).prompted(texts=["cat " * 15 + "cat"])

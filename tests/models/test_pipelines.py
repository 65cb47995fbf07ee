"""Pipelines of transformers and processors as models: the same numbers as the library's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import konkyo
from helpers.open_vocabulary import network, processor
from konkyo.errors import KonkyoError

T = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}


def picture() -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((160, 100))


def classifier(seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    config = T.ViTConfig(**SMALL, image_size=64, patch_size=16, **NAMES, **more)
    return T.ViTForImageClassification(config).eval()


@pytest.mark.parametrize("backend", ["", "Pil"])
def test_a_pipeline_of_a_classifier_is_explained(backend: str) -> None:
    images = getattr(T, f"ViTImageProcessor{backend}")(size={"height": 64, "width": 64})
    pipeline = T.pipeline("image-classification", model=classifier(), image_processor=images)
    own = pipeline(picture(), top_k=3)
    model = konkyo.Model(pipeline)
    assert (model.name, model.classes) == ("ViTForImageClassification", ("cat", "dog", "owl"))
    assert model.preprocess is not None
    result = konkyo.explain(pipeline, picture(), target=konkyo.TopK(3))
    assert list(result.labels) == [entry["label"] for entry in own]
    inputs = model.preprocess(picture())[None]
    ours = model(inputs)[0].softmax(0).sort(descending=True).values
    torch.testing.assert_close(ours, torch.tensor([entry["score"] for entry in own]), rtol=0, atol=2e-3)
    assert not any("as the module itself tells" in text for text in result.assumptions)


def test_a_pipeline_of_several_labels_is_of_sigmoids() -> None:
    images = T.ViTImageProcessorPil(size={"height": 64, "width": 64})
    module = classifier(problem_type="multi_label_classification")
    pipeline = T.pipeline("image-classification", model=module, image_processor=images)
    assert konkyo.Model(pipeline).multilabel


def test_a_pipeline_of_a_detector_of_texts_is_explained() -> None:
    own = processor("OwlViT")
    pipeline = T.pipeline(
        "zero-shot-object-detection",
        model=network("OwlViT"),
        tokenizer=own.tokenizer,
        image_processor=own.image_processor,
    )
    assert pipeline.processor is None
    found = pipeline(picture(), candidate_labels=["cat", "red remote"], threshold=0.0)
    model = konkyo.Model(pipeline).prompted(texts=["cat", "red remote"])
    pairs = konkyo.Detections(0.0, top=3, suppressed=False)  # the pipeline asks for every text alone
    result = konkyo.explain(model, picture(), method="odam", target=pairs)
    assert list(result.labels) == [entry["label"] for entry in found[:3]]
    torch.testing.assert_close(result.scores, torch.tensor([entry["score"] for entry in found[:3]]), rtol=0, atol=1e-4)
    assert result.boxes is not None
    for box, entry in zip(result.boxes.tolist(), found, strict=False):  # the pipeline cuts pixels off
        assert box == pytest.approx([entry["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")], abs=1.01)


def test_a_pipeline_of_a_detector_is_explained() -> None:
    stages = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1] * 4, "layer_type": "basic"}
    torch.manual_seed(0)
    config = T.DetrConfig(
        backbone_config=T.ResNetConfig(**stages, out_features=["stage4"]),
        **{"d_model": 32, "num_queries": 6, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2},
        **{"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
        **NAMES,
    )
    images = T.DetrImageProcessorPil(size={"height": 64, "width": 96})
    pipeline = T.pipeline("object-detection", model=T.DetrForObjectDetection(config).eval(), image_processor=images)
    found = pipeline(picture(), threshold=0.0)
    result = konkyo.explain(pipeline, picture(), method="odam", target=konkyo.Detections(0.0))
    assert len(result) == len(found) == 6
    scores = sorted((entry["score"] for entry in found), reverse=True)
    torch.testing.assert_close(result.scores, torch.tensor(scores), rtol=0, atol=1e-4)


def test_pipelines_of_other_things_are_refused() -> None:
    config = T.BertConfig(**SMALL, vocab_size=1100, max_position_embeddings=32)
    words = processor("GroundingDino").tokenizer
    texts = T.pipeline("text-classification", model=T.BertForSequenceClassification(config), tokenizer=words)
    with pytest.raises(KonkyoError, match="a pipeline of images was expected; got one of text-classification"):
        konkyo.Model(texts)


@pytest.mark.parametrize("backend", ["", "Pil"])
def test_a_processor_tells_how_pictures_are_prepared(backend: str) -> None:
    images = getattr(T, f"ViTImageProcessor{backend}")(size={"height": 64, "width": 64}, image_mean=[0.1, 0.2, 0.3])
    model = konkyo.Model(classifier(), processor=images)
    assert model.preprocess is not None
    assert model.preprocess.mean == pytest.approx((0.1, 0.2, 0.3))
    expected = images(picture(), return_tensors="pt")["pixel_values"][0]
    assert (model.preprocess(picture()) - expected).abs().mean() < 0.01
    given = konkyo.Preprocess(resize=(64, 64), crop=None)
    assert konkyo.Model(classifier(), given, processor=images).preprocess == given


def test_a_processor_with_steps_of_its_own_prepares_no_pictures() -> None:
    class Inverted(T.ViTImageProcessorPil):  # type: ignore[misc]
        def normalize(self, image: Any, *arguments: Any, **more: Any) -> Any:
            return -super().normalize(image, *arguments, **more)

    model = konkyo.Model(classifier(), processor=Inverted(size={"height": 64, "width": 64}))
    assert model.preprocess is None
    with pytest.raises(KonkyoError, match="does not say how to prepare a picture"):
        konkyo.explain(model, picture())

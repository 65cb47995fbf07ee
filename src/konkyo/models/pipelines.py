"""Pipelines of transformers: the network in them, and what its images and texts are prepared with."""

from __future__ import annotations

from typing import Any

from konkyo.errors import KonkyoError
from konkyo.models.kinds import known

_EMBEDDING = "image-feature-extraction"


def is_pipeline(model: Any) -> bool:
    """Tells whether this is a pipeline of transformers, which is not imported for it."""
    names = [(kind.__module__, kind.__name__) for kind in type(model).__mro__]
    return any(module.startswith("transformers.pipelines") and name == "Pipeline" for module, name in names)


def opened(pipeline: Any) -> tuple[Any, Any]:
    """Returns the network of a pipeline, and the processor that goes with it.

    KonkyoError: a pipeline of no images, or of a task that nothing here explains.
    """
    module, processor = pipeline.model, _processor(pipeline)
    if processor is None or "image" not in getattr(module, "input_modalities", ("image",)):
        raise KonkyoError(f"a pipeline of images was expected; got one of {pipeline.task}")
    if pipeline.task != _EMBEDDING and not known(module, processor):
        raise KonkyoError(f"no {type(module).__name__} of a pipeline of {pipeline.task} can be explained so far")
    return module, processor


def _processor(pipeline: Any) -> Any:
    """Returns the pipeline's processor, or one made of its parts as transformers makes it of the model's type."""
    if pipeline.processor is not None or pipeline.tokenizer is None or pipeline.image_processor is None:
        return pipeline.processor or pipeline.image_processor
    from konkyo.models.transformers import import_transformers

    names = import_transformers().models.auto.processing_auto.PROCESSOR_MAPPING_NAMES
    kind = names.get(pipeline.model.config.model_type)
    if kind is None:
        return pipeline.image_processor
    built = getattr(import_transformers(), kind)
    return built(image_processor=pipeline.image_processor, tokenizer=pipeline.tokenizer)

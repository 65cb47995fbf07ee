"""Hugging Face's models: `hf/ID` from the hub, or `hf/FOLDER`. Needs the extra `transformers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from konkyo.errors import KonkyoError, first_line, install_hint
from konkyo.models.base import Model, adapter
from konkyo.models.checkpoints import read_weights, require_inside
from konkyo.models.kinds import Kind, class_names, kind, kinds_of, known, source_of
from konkyo.models.preprocess import Preprocess
from konkyo.models.timm import preprocessing as timm_preprocessing
from konkyo.tasks.embedding import EmbeddingTask
from konkyo.tasks.regression import RegressionTask


def import_transformers() -> ModuleType:
    """Returns transformers, imported when one of its models is asked for. KonkyoError: it is not installed."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise KonkyoError(f"hf/ID needs the library transformers: {install_hint('transformers')}") from error


@adapter("hf")
def load(name: str, weights: str | Path | None) -> Model:
    """Returns the model with this id on the hub, or in this folder (no network then), of any kind that is known here.

    A folder is one that `save_pretrained` wrote. `weights`: "default" (its own), None (random, built from its config)
    or a file. Code that comes with a model is never run. KonkyoError, in one line: transformers is not installed, an
    unknown id, no network, a model of another kind, or weights that do not fit or are not complete.
    """
    transformers = import_transformers()
    settings = {"trust_remote_code": False, "local_files_only": Path(name).is_dir()}
    noun, usual, processor = "", True, None
    try:
        if settings["local_files_only"]:
            require_inside(Path(name))
        config = transformers.AutoConfig.from_pretrained(name, **settings)
        chosen = kind_of(transformers, config)
        noun, auto = chosen.noun, getattr(transformers, chosen.auto)

        def build(classes: int | None) -> Any:
            resized = deepcopy(config)
            if classes is not None:
                resized.num_labels = classes
            return auto.from_config(resized, trust_remote_code=False)

        if weights is None:
            module = build(None)
        elif weights == "default":
            module, report = auto.from_pretrained(name, weights_only=True, output_loading_info=True, **settings)
            _require_trained(name, noun, module, report["missing_keys"])
        else:
            module, usual = _with_weights(name, noun, build, read_weights(weights))
        if chosen.processor:
            processor = getattr(transformers, chosen.processor).from_pretrained(name, **settings)
    except KonkyoError:
        raise
    except Exception as error:  # hub, network, config and weights fail in their own ways
        raise KonkyoError(
            f"hf/{name} cannot be loaded{noun and ' as an ' + noun}: {first_line(error)} Give a model's id on "
            "the hub, or a folder with its config.json and weights"
        ) from error
    arguments = known(module.eval(), processor)
    if not arguments:
        raise KonkyoError(f"hf/{name}: {type(module).__name__} is no {noun} that is known here")
    if "preprocess" not in arguments:
        arguments["preprocess"] = _preprocess(transformers, name, settings)
    return Model(
        **{"module": module, "classes": _classes(config) if usual else (), **arguments, "name": f"hf/{name}"},
    )


@kind("transformers", "image classifier", auto="AutoModelForImageClassification")
def classifier(module: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns whether the classes of an image classifier exclude each other, or that it is a regressor.

    None: another module.
    """
    del processor
    if not any(name.endswith("ForImageClassification") for name in class_names(module)):
        return None
    config: Any = module.config
    if config.problem_type == "regression":
        return {"task": RegressionTask(), "classes": _classes(config, only=True)}
    return {"multilabel": config.problem_type == "multi_label_classification"}


def kind_of(transformers: ModuleType, config: Any) -> Kind:
    """Returns the kind of a network with this config: that of the class which its weights are of.

    Where it names none that is known, an image classifier if there is one of its type, else an object detector, else
    the first kind that has such a type. KonkyoError: there is none.
    """
    kinds = {kind.noun: kind for kind in kinds_of("transformers") if kind.auto}
    usual = [kinds.pop(noun) for noun in ("image classifier", "object detector")]
    fitting = {
        kind.noun: names for kind in (*usual, *kinds.values()) if (names := _class_names(transformers, kind, config))
    }
    every = {kind.noun: kind for kind in (*usual, *kinds.values())}
    for noun, names in fitting.items():
        if set(names) & set(config.architectures or ()):
            return every[noun]
    if not fitting or any("For" in name for name in config.architectures or ()):
        named = "".join(f" ({name})" for name in config.architectures or ())
        raise KonkyoError(
            f"a network of type {config.model_type}{named} is none of those known here: {', '.join(every)}"
        )
    return every[next(iter(fitting))]


def _class_names(transformers: ModuleType, kind: Kind, config: Any) -> list[str]:
    """Returns the classes of transformers that are of a kind and have this config."""
    try:
        classes = getattr(transformers, kind.auto)._model_mapping[type(config)]
    except (AttributeError, KeyError):
        return []
    return [c.__name__ for c in (classes if isinstance(classes, (list, tuple)) else (classes,))]


def facts(module: Any) -> dict[str, Any]:
    """Returns the class names and the preprocessing of a module of transformers, as far as it tells them.

    The names are those in its config, of an image classifier or a detector. The preprocessing is read from the
    processor in the files that the module came from: the network is never asked for it.
    """
    config = getattr(module, "config", None)
    if config is None or not (getattr(module, "main_input_name", "") == "pixel_values" or known(module)):
        return {}
    description: dict[str, Any] = {}
    if (arguments := known(module)) and not isinstance(arguments.get("task"), EmbeddingTask):
        description["classes"] = _classes(config)
    if source := source_of(module):
        description["preprocess"] = _local_preprocess(source)
    return description


@lru_cache(maxsize=64)
def local_processor(source: str) -> Any:
    """Returns the processor of images and text of a model in a folder or in the hub's cache; None: there is none."""
    settings = {"trust_remote_code": False, "local_files_only": True}
    try:
        return import_transformers().AutoProcessor.from_pretrained(source, **settings) if source else None
    except Exception:  # no files, or a processor of another kind
        return None


@lru_cache(maxsize=64)
def _local_preprocess(source: str) -> Preprocess | None:
    """Returns the preprocessing of a model in a folder or in the hub's cache; None where there is none."""
    return _preprocess(import_transformers(), source, {"trust_remote_code": False, "local_files_only": True})


def _with_weights(
    name: str, kind: str, build: Callable[[int | None], Any], state: dict[str, Tensor]
) -> tuple[Any, bool]:
    """Returns (the network with these weights, whether its classes are the usual ones).

    KonkyoError: they do not fit.
    """
    usual, network = True, build(None)
    for _ in range(2):
        # transformers itself, as names in its files differ from those of its modules.
        module, report = type(network).from_pretrained(
            None, config=network.config, state_dict=dict(state), ignore_mismatched_sizes=True, output_loading_info=True
        )
        misfits, labels = report["mismatched_keys"], network.config.num_labels
        counts = {
            new[0] - expected[0] + labels
            for _, new, expected in misfits
            if expected[:1] in ((labels,), (labels + 1,))
            and new[1:] == expected[1:]  # one more: "no object", or a padding
        }
        if not usual or len(counts) != 1:
            break
        usual, network = False, build(counts.pop())
    if misfits:
        key, new, expected = min(misfits)
        raise KonkyoError(f"the weights do not fit hf/{name}: {key} is {tuple(new)} for {tuple(expected)}")
    _require_trained(name, kind, module, report["missing_keys"])
    return module, usual


def _require_trained(name: str, kind: str, module: Any, missing: set[str]) -> None:
    """Raises KonkyoError where weights or statistics are missing: transformers starts them at random, or at 0 and 1."""
    names = {key for key in module.state_dict() if not key.endswith("num_batches_tracked")}
    absent = sorted(missing & names)
    if absent:
        named = ", ".join(absent[:3])
        raise KonkyoError(f"hf/{name} is no trained {kind}: it lacks {len(absent)} weights ({named} ...)")


def _classes(config: Any, *, only: bool = False) -> tuple[str, ...]:
    """Returns the names of the classes; none of invented ones, or for the two sides of a single logit.

    `only`: also a single name, which is that of a number.
    """
    if set(config.id2label) != set(range(config.num_labels)):
        return ()
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    invented = all(text == f"LABEL_{index}" for index, text in enumerate(names))
    return () if invented or (len(names) == 1 and not only) else names


def _preprocess(transformers: ModuleType, name: str, settings: Mapping[str, bool]) -> Preprocess | None:
    """Returns the model's own preprocessing; None where it has none, or one that a `Preprocess` cannot follow."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, backend="pil", **settings)
    except Exception:  # no processor, or one of another kind
        return None
    return preprocess_like(processor)


def preprocess_like(processor: Any) -> Preprocess | None:
    """Returns what an image processor does; None where a `Preprocess` cannot follow it.

    Processors are classes with steps of their own, of which the numbers in their config do not tell. So what was read
    from the numbers is held against the processor, on pictures of noise: two wide ones and a tall one.
    """
    random = np.random.default_rng(0)
    sizes = ((70, 91), (71, 94), (131, 37))
    pictures = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    processor = getattr(processor, "image_processor", processor)
    try:
        if type(processor).__name__ == "TimmWrapperImageProcessor":
            preprocess = timm_preprocessing(processor.data_config)
        else:
            preprocess = _from_settings(processor)
        for picture in pictures:
            expected, prepared = processor(picture, return_tensors="pt")["pixel_values"][0], preprocess(picture)
            level = 1 / 255 / min(preprocess.std)
            if prepared.shape != expected.shape or float((prepared - expected).abs().mean()) >= level:
                return None
    except Exception:  # a processor of another kind, or a setting that is not known here
        return None
    return preprocess


def _from_settings(processor: Any) -> Preprocess:
    """Returns what an image processor's settings say. KonkyoError, KeyError: something that they cannot say."""
    numbers = processor.to_dict()
    size = numbers.get("size") or {}
    if set(size) == {"shortest_edge"} and numbers.get("size_divisor"):  # ViLT's, whose sides are at most as 800 to 1333
        longest = int(1333 / 800 * size["shortest_edge"])
        return replace(from_numbers(numbers), longest=longest, multiple=numbers["size_divisor"])
    if not numbers.get("do_resize") or set(size) != {"shortest_edge", "longest_edge"}:
        return from_numbers(numbers)
    limits: dict[str, Any] = {"longest": size["longest_edge"]}
    if type(processor).__name__.startswith("Yolos"):
        limits["multiple"] = 16  # fixed in the processor's code, whatever the patches
    return replace(from_numbers({**numbers, "size": {"shortest_edge": size["shortest_edge"]}}), **limits)


def from_numbers(numbers: Mapping[str, Any]) -> Preprocess:
    """Returns what an image processor's settings say. KonkyoError, KeyError: something that they cannot say."""
    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    if numbers.get("do_center_crop"):
        crop = numbers["crop_size"]["height"], numbers["crop_size"]["width"]
    if numbers.get("do_resize"):
        size = numbers["size"]
        if size.keys() == {"height", "width"}:
            resize = size["height"], size["width"]
        elif size.keys() != {"shortest_edge"}:
            raise KonkyoError(f"a size of {', '.join(size)} is not known")
        elif "crop_pct" not in numbers:
            resize = size["shortest_edge"]
        elif crop is not None or size["shortest_edge"] < 384:
            resize = int(size["shortest_edge"] / numbers["crop_pct"])
            crop = crop or size["shortest_edge"]
        else:  # ConvNeXt warps large pictures
            resize = size["shortest_edge"], size["shortest_edge"]
    # Pixels in [0, 1] become (255 factor p - offset - mean) / std; here as (p - mean) / std.
    factor = 255 * numbers["rescale_factor"] if numbers.get("do_rescale") else 255.0
    offset = 1.0 if numbers.get("rescale_offset") or numbers.get("offset") else 0.0  # ViViT says it shortly
    mean, std = (0.0,) * 3, (1.0,) * 3
    if numbers.get("do_normalize"):
        mean, std = numbers["image_mean"], numbers["image_std"]
    again = numbers["image_std"] if numbers.get("include_top") else (1.0,) * 3  # EfficientNet divides twice
    squares = {"fit": "square", "border": 0.0, "interpolation": "gaussian"}  # of OWLv2, which ignores `resample`
    resample = Image.Resampling(numbers.get("resample", Image.Resampling.BILINEAR)).name.lower()
    owl = numbers.get("image_processor_type", "").startswith("Owlv2") and numbers.get("do_pad")
    return Preprocess(
        resize=resize,
        crop=crop,
        mean=tuple((offset + m) / factor for m in mean),
        std=tuple(s * a / factor for s, a in zip(std, again, strict=True)),
        centre="floor",
        **(squares if owl else {"interpolation": resample}),
    )

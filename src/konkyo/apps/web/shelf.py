"""Shelf: the models that users of the page may choose, and the samples that go with each."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from konkyo.data.samples import Sample, Samples, samples
from konkyo.engine.probe import NEEDS
from konkyo.errors import KonkyoError, unknown
from konkyo.evaluation.diagnose.collected import Collected, Settings, collect
from konkyo.evaluation.neighbours import Neighbours, neighbours_of
from konkyo.methods.base import Method, methods
from konkyo.models import Model, load
from konkyo.models.blackbox import BlackBox
from konkyo.models.shipped import SHIPPED
from konkyo.tasks import ClassificationTask

SAMPLES = 12
"""So many samples are offered."""
POOL = 48
"""Neighbours are looked for among so many images."""
LOADED = 6
"""So many models are kept in memory; the one that was used longest ago goes first."""
_PUBLIC = re.compile(r"(torchvision|timm|hf)/[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(eq=False, repr=False)
class Shelf:
    """The models on offer. Users share a network; its lock in the library keeps them from meeting inside it."""

    names: tuple[str, ...] = ()
    """What was given at the start: folders, FILE.py:FUNCTION, public ids. Only these are read from the disk."""
    public: bool = False
    """Whether any id of torchvision, timm and transformers may be asked for."""
    data: str = ""
    """The data set that the samples are of; "": drawn scenes, or questions about them."""
    _pools: dict[str, Collected] = field(default_factory=dict)
    """Of a model, what it makes of the images that neighbours are looked for in."""
    _samples: dict[str, tuple[Sample, ...]] = field(default_factory=dict)
    _models: OrderedDict[str, Model] = field(default_factory=OrderedDict)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def offer(self) -> tuple[str, ...]:
        """Returns the names of the models that can be chosen from a list."""
        return tuple(dict.fromkeys([*self.names, *(f"konkyo/{name}" for name in SHIPPED)]))

    def model(self, name: str) -> Model:
        """Returns a model, loaded once for all users. KonkyoError: a name that is not on offer."""
        if not isinstance(name, str) or not (name in self.offer or (self.public and _is_public(name))):
            raise unknown("model", str(name)[:80], self.offer)
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:  # two users who ask for one model wait for one loading
            with self._lock:
                if name in self._models:
                    self._models.move_to_end(name)
                    return self._models[name]
            model = load(name)
            if not model.takes_pictures:
                raise KonkyoError(f"{model.name} takes other inputs than pictures, which this page cannot show")
            with self._lock:
                self._models[name] = model
                while len(self._models) > LOADED:
                    gone, _ = self._models.popitem(last=False)
                    self._pools.pop(gone, None)
        return model

    def samples(self, name: str) -> tuple[Sample, ...]:
        """Returns the samples that go with a model, opened once for all users."""
        source = self.source(self.model(name))
        if source not in self._samples:
            self._samples[source] = tuple(samples(source, limit=SAMPLES))
        return self._samples[source]

    def source(self, model: Model, count: int = SAMPLES) -> str:
        """Returns what `konkyo.data.samples` reads the samples that go with a model from."""
        if self.data:
            return self.data
        if asks(model):
            return f"questions:{count}"
        return f"scenes:{count},objects=1" if isinstance(model.task, ClassificationTask) else f"scenes:{count}"

    def neighbours(self, name: str, picture: Image.Image, count: int, check: Callable[[], None]) -> Neighbours:
        """Returns the images that a picture resembles for a model, among POOL of those that its samples are of.

        `check` is called now and then, and may end the work by an exception. KonkyoError: no classifier of classes of
        its own.
        """
        model = self.model(name)
        if not isinstance(model.task, ClassificationTask) or model.prompts is not None:
            raise KonkyoError(f"neighbours are looked for by classifiers; {name} is none, or reads a text as well")
        settings = Settings(batch=8)

        def progress(done: int, total: int | None) -> None:
            del done, total
            check()

        if (pool := self._pools.get(name)) is None:
            data = samples(self.source(model, POOL), limit=POOL)
            pool = self._pools[name] = collect(model, data, settings, progress=progress)
        query = Samples(("picture",), lambda _: Sample("picture", picture))
        return neighbours_of(collect(model, query, settings, train=pool), pool, count)


def _is_public(name: str) -> bool:
    """Tells whether a name is an id of a library's models and nothing on this disk."""
    return bool(_PUBLIC.fullmatch(name)) and not Path(name.partition("/")[2]).exists()


def asks(model: Model) -> bool:
    """Tells whether a model reads a question beside the picture."""
    return model.prompts is not None and model.prompts.noun == "question"


def groups_of_methods(model: Model) -> dict[str, list[str]]:
    """Returns the methods for a model by family: first those usual for its task, the default one first of all.

    Left out is what a look at the network rules out; what else does not apply says so when it is run.
    """
    usual = list(dict.fromkeys((model.task.method, *model.task.methods)))
    applicable = {name: method for name, method in methods().items() if _may_apply(method, model)}
    groups: dict[str, list[str]] = {"usual": [name for name in usual if name in applicable]}
    for name, method in applicable.items():
        if name not in usual:
            groups.setdefault(method.function.__module__.rpartition(".")[2], []).append(name)
    return groups


def _may_apply(method: Method, model: Model) -> bool:
    """Tells whether nothing that is known without a forward is against a method."""
    if method.needs_inside() and isinstance(model.module, BlackBox):
        return False
    if method.score == "similarity" and not model.task.instances:
        return False
    networks = [NEEDS[name].networks for name in _needs(method)]
    if any(words.startswith("detectors") for words in networks) and not model.task.instances:
        return False
    return _attends(model.module) or not any(words.startswith(("detectors", "transformers")) for words in networks)


def _needs(method: Method) -> Sequence[str]:
    """Returns what a method and those inside it need."""
    return method.needs if method.inner is None else (*method.needs, *_needs(method.inner))


def _attends(network: nn.Module) -> bool:
    """Tells whether a module of the network bears the name of attention."""
    return any("atten" in type(module).__name__.lower() for module in network.modules())


def known_method(name: Any, model: Model) -> str:
    """Returns the name of a method that is on offer for a model. KonkyoError: another one."""
    offer = [method for group in groups_of_methods(model).values() for method in group]
    if not isinstance(name, str) or name not in offer:
        raise unknown("method", str(name)[:80], offer)
    return name

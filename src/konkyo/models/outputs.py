"""Outputs: which of the tensors that a network returns are its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from konkyo.errors import KonkyoError

_AUXILIARY = ("aux", "loss")
_FEATURES = ("feat", "embed", "hidden", "pool", "attention", "attn", "tokens", "latent", "representation")
"""Parts of names that logits never have."""
_BOXES = ("boxes", "bbox")
_UNIT_ROUNDING = 2e-3  # of lengths in half precision
_NAMES: tuple[Callable[[str], bool], ...] = (
    lambda name: name == "logits",
    lambda name: name == "out",
    lambda name: "logit" in name,
)
"""Names of logits, the surest first."""


@dataclass(frozen=True)
class Part:
    """A part is one tensor in what a network returns, and where it lies there."""

    path: str
    """A Python expression, such as `output["head"][1]`."""
    names: tuple[str, ...]
    """The names on the way to it, in small letters; places in lists have none."""
    tensor: Tensor

    def __str__(self) -> str:
        return f"{self.path} ({', '.join(map(str, ('N', *self.tensor.shape[1:])))})"

    def about(self, words: Sequence[str]) -> bool:
        """Tells whether one of the names has one of the words in it."""
        return any(word in name for name in self.names for word in words)


@dataclass(frozen=True)
class Choice:
    """A choice is the tensor that is read as the output, and what is known of it."""

    tensor: Tensor
    assumed: str = ""
    """A sentence where nothing but its shape speaks for it."""
    doubt: str = ""
    """A sentence where another tensor may as well be meant."""
    features: str = ""
    """Why it holds features and no logits, where its name says so."""


def parts_of(output: Any, path: str = "output", names: tuple[str, ...] = ()) -> Iterator[Part]:
    """Yields the tensors in an output of tuples, lists, mappings and dataclasses, however nested."""
    if isinstance(output, Tensor):
        yield Part(path, names, output)
        return
    places: list[tuple[str, str, Any]] = []
    if isinstance(output, Mapping):
        places = [(f"[{key!r}]", str(key), value) for key, value in output.items()]
    elif is_dataclass(output) and not isinstance(output, type):
        places = [(f".{f.name}", f.name, getattr(output, f.name)) for f in fields(output)]
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        places = [(f".{name}", name, value) for name, value in zip(output._fields, output, strict=True)]
    elif isinstance(output, (tuple, list)):
        places = [(f"[{index}]", "", value) for index, value in enumerate(output)]
    for place, name, value in places:
        yield from parts_of(value, path + place, (*names, name.lower()) if name else names)


def choose(output: Any, classes: int = 0) -> Choice:
    """Returns the logits in what a classifier returns; `classes` is how many class names there are, 0 if none.

    A name says which they are: "logits", "out" or one with "logit" in it. Otherwise it is the one tensor (N, K), or the
    one whose K is the number of classes. Of several heads of one size in a tuple or list the first is taken, and the
    doubt kept. KonkyoError: no tensor, or several that it could be.
    """
    if isinstance(output, Tensor):
        return Choice(_floating(output))
    parts = [part for part in parts_of(output) if part.tensor.ndim]
    parts = list({id(part.tensor): part for part in reversed(parts)}.values())[::-1]
    if not parts:
        raise KonkyoError(
            f"no tensor in the model's output, a {type(output).__name__}; say where the logits are: "
            "konkyo.Model(module, select=lambda output: ...)"
        )
    floating = [part for part in parts if part.tensor.is_floating_point()]
    if len(floating) < 2:
        return _only((floating or parts)[0])
    main = [part for part in floating if not part.about(_AUXILIARY)] or floating
    named = next((part for part in map(_named(main), _NAMES) if part), [])
    if len(named) == 1:
        return Choice(named[0].tensor)
    return _by_shape(named or main, floating, classes)


def _named(parts: Sequence[Part]) -> Callable[[Callable[[str], bool]], list[Part]]:
    """Returns a function from a rule for names to the parts that have such a name, the least nested of them."""

    def matching(rule: Callable[[str], bool]) -> list[Part]:
        matches = [part for part in parts if any(map(rule, part.names))]
        depths = [next(i for i, name in enumerate(part.names) if rule(name)) for part in matches]
        return [part for part, depth in zip(matches, depths, strict=True) if depth == min(depths)]

    return matching


def _by_shape(parts: list[Part], everything: list[Part], classes: int) -> Choice:
    """Returns the part that is logits by its shape; of features alone the tokens. KonkyoError: several could be."""
    candidates = [part for part in parts if not part.about(_FEATURES)]
    if not candidates:
        states = [part for part in parts if part.names[-1:] == ("last_hidden_state",)]
        if len(states) == 1:
            return Choice(states[0].tensor, features=_features(states[0]))
        raise _ambiguous(parts)
    if any(part.about(_BOXES) for part in everything):
        raise KonkyoError(
            f"the network returns boxes ({', '.join(map(str, everything[:8]))}): a detector. One of a library is known "
            "without the module around it; another needs detector=konkyo.dense_detector(...) or konkyo.Detector(...), "
            "which say where its candidates are before suppression"
        )
    tables = [part for part in candidates if part.tensor.ndim == 2] or candidates
    sizes = {classes, 1} if classes == 2 else {classes}  # a single logit stands for two classes
    fitting = [part for part in tables if part.tensor.ndim == 2 and part.tensor.shape[1] in sizes]
    if len(tables) > 1 and len(fitting) == 1:
        return Choice(fitting[0].tensor)
    if len({(part.names, part.tensor.shape) for part in tables}) == 1 < len(tables) and tables[0].tensor.ndim == 2:
        # Heads of the same classes, the main one and those that only help in training: by custom it is the first.
        return Choice(tables[0].tensor, doubt=f"The first is explained: {_ambiguous(tables)}.")
    if len(tables) > 1:
        raise _ambiguous(tables)
    others = ", ".join(str(part) for part in everything if part is not tables[0])
    tokens = [
        part for part in everything if part.tensor.ndim == 3 and part.tensor.shape[2:] == tables[0].tensor.shape[1:]
    ]
    return Choice(
        tables[0].tensor,
        f"Of what the network returns, {tables[0]} is read as the logits, and not {others}; another: "
        "konkyo.Model(module, select=lambda output: ...).",
        features=f"{tables[0]} has as many numbers as each of the tokens {tokens[0]}" if tokens else "",
    )


def _only(part: Part) -> Choice:
    """Returns the one tensor that there is."""
    features = _features(part) if part.about(_FEATURES) and not part.about(("logit",)) else ""
    return Choice(_floating(part.tensor), features=features)


def _features(part: Part) -> str:
    return f"{part} holds features by its name"


def _ambiguous(candidates: Sequence[Part]) -> KonkyoError:
    """Returns the error that names all tensors which could be the logits."""
    offer = ", ".join(map(str, candidates[:8])) + (" ..." if len(candidates) > 8 else "")
    select = f"konkyo.Model(module, select=lambda output: {candidates[-1].path})"
    if all(part.tensor.ndim > 2 for part in candidates):
        return KonkyoError(
            f"the network returns {len(candidates)} tensors and none is of classes (N, K): {offer}. Features of a "
            f"network without a head, perhaps: choose one, {select}, and give a target, a callable output -> (N,) "
            "scores; methods that know no class (eigen_cam, kpca_cam, fem) need none"
        )
    return KonkyoError(
        f"the network returns {len(candidates)} tensors that could be its output: {offer}; say which one: {select}"
    )


def _floating(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return tensor
    raise KonkyoError(
        f"the network's output is {tensor.dtype}, no scores: a decision that it has made already, perhaps. Give the "
        "network without that step, or say where the logits are: konkyo.Model(module, select=lambda output: ...)"
    )


def select_logits(output: Any) -> Tensor:
    """Returns the logits in what a classifier returns, as `choose` does.

    KonkyoError: no tensor, or several that it could be.
    """
    return choose(output).tensor


def headless(module: nn.Module, outputs: int | None = None) -> str:
    """Returns why a network with so many outputs puts out features and no classes; "": nothing says so.

    Its last module is an `Identity` in the place of a head, it counts no classes itself, as timm's networks do, or it
    is a base model of transformers. `outputs`: None, where nothing is run yet.
    """
    if getattr(module, "num_classes", None) == 0:
        return "the network says that it has 0 classes"
    if is_base_model(module):
        return "a base model of transformers has no head"
    last = module
    while children := list(last.children()):
        last = children[-1]
    if not isinstance(last, nn.Identity):
        return ""
    leaves = [leaf for leaf in module.modules() if not any(leaf.children())]
    before = next((leaf for leaf in reversed(leaves) if not isinstance(leaf, (nn.Identity, nn.Dropout))), None)
    if isinstance(before, nn.Linear) and outputs in (None, before.out_features):
        return ""
    if outputs is None and isinstance(before, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):  # which may be a head, too
        return ""
    return "the network's last module is an Identity in the place of a head"


def of_unit_length(output: Tensor) -> str:
    """Returns that every row of an output (N, K) has the length 1, as embeddings do; "": it has not, or is one-hot."""
    if output.ndim != 2 or output.shape[1] < 3:
        return ""
    values = output.detach().float().abs()
    unit = ((values.norm(dim=1) - 1).abs() < _UNIT_ROUNDING) & (values.amax(1) < 1 - _UNIT_ROUNDING)
    return "every output has the length 1, as embeddings have and logits have not" if bool(unit.all()) else ""


def base_model_features(module: nn.Module, outputs: int) -> str:
    """Returns why so many numbers that a user selected are features; "": nothing says so."""
    sizes: Any = getattr(getattr(module, "config", None), "hidden_size", None)
    return headless(module, outputs) if sizes == outputs and is_base_model(module) else ""


def is_base_model(module: nn.Module) -> bool:
    """Tells whether a module is one of transformers without a head."""
    return getattr(module, "base_model", None) is module and "For" not in type(module).__name__

"""Whether a method's maps depend on what the network has learnt and on what is asked, and on what they should not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from konkyo.engine.capture import draw_anew
from konkyo.errors import KonkyoError, silenced, unknown
from konkyo.evaluation import display
from konkyo.explanation.explain import Which, explain
from konkyo.explanation.inputs import Images
from konkyo.explanation.result import Explanation
from konkyo.metrics.variants import pearson, spearman, ssim
from konkyo.models import Model, as_model
from konkyo.targets.base import Target, as_target
from konkyo.targets.classes import Each
from konkyo.utils.tensors import min_max, on_finest, resize

Order: TypeAlias = Literal["cascading", "independent", "bottom_up"]
Likeness: TypeAlias = Literal["rank", "ssim", "pearson"]
"""How alike two maps are, without their signs: by their ranks, by SSIM scaled to [0, 1], or by their values."""
Over: TypeAlias = Literal["seed", "noise", "mirror", "layer"]
ALIKE = 0.5
"""Maps with a larger rank correlation than this are called alike."""


@dataclass(frozen=True, eq=False)
class Sanity:
    """The result says how alike maps are to those of the network as it is, in steps."""

    test: str
    steps: tuple[str, ...]
    similarity: Tensor
    """(steps, R) Spearman's correlation of absolute values, or another `likeness`; NaN where a map is constant."""
    passed: bool
    verdict: str
    """In a sentence."""

    def __repr__(self) -> str:
        return display.words_of_sanity(self)

    def _repr_html_(self) -> str:
        return display.html_of_sanity(self)


def randomisation(
    model: Model | nn.Module,
    images: Images,
    method: Which = "grad_cam",
    *,
    order: Order = "cascading",
    likeness: Likeness = "rank",
    steps: int = 10,
    seed: int = 0,
    **settings: Any,
) -> Sanity:
    """Runs the parameter randomisation test (Adebayo et al., 2018): maps of networks whose weights are drawn anew.

    From the output down, "cascading" (more and more of the modules) or "independent" (one part at a time, the others as
    they are), or cascading from the input up, "bottom_up", in `steps` parts. `likeness` is "rank" (correlation), "ssim"
    (structural similarity, as the paper also has it) or "pearson", of maps without their signs. The method passes
    where, all weights random, the mean similarity is at most 0.5: a map that stays as it is says nothing of what was
    learnt. `settings` are those of `explain`; what is explained stays what the network as it is decided on. The network
    itself is not touched. Modules are taken in the order of the network or its reverse; what has no parameters (frozen
    batch norms) stays as it is.

    KonkyoError: no weights, an unknown order, or steps below 1.
    """
    if order not in get_args(Order) or steps < 1:
        offer = ", ".join(map(repr, get_args(Order)))
        raise KonkyoError(f"order {offer} and steps >= 1 were expected; got {order!r}, {steps}")
    if likeness not in get_args(Likeness):
        raise unknown("likeness", likeness, get_args(Likeness))
    adapted = as_model(model)
    usual, target = _usual(adapted, images, method, seed, settings)
    _require_some(usual)
    if isinstance(module_ := settings.get("layer"), nn.Module):  # to be found in copies
        settings["layer"] = next((n for n, m in adapted.module.named_modules() if m is module_), module_)
    similarities, names = list[Tensor](), list[str]()
    for name, module in _randomised(adapted.module, order, steps, seed):
        arguments = {"method": method, "target": target, "seed": seed} | settings
        maps = _quietly(partial(explain, replace(adapted, module=module), images, **arguments)).maps
        similarities.append(_alike(usual.maps, maps, likeness))
        names.append(name)
    similarity = torch.stack(similarities)
    last = float(similarity.nanmean() if order == "independent" else similarity[-1].nanmean())
    passed = not last > ALIKE
    what = "one part's weights random" if order == "independent" else "all weights random"
    says = "the map depends on what the network has learnt" if passed else "the map hardly depends on what was learnt"
    return Sanity(order, tuple(names), similarity, passed, f"{says}: with {what}, {_WORDS[likeness]} {last:.2f}")


def efficient_randomisation(
    model: Model | nn.Module,
    images: Images,
    method: Which = "grad_cam",
    *,
    bins: int = 100,
    seed: int = 0,
    **settings: Any,
) -> Tensor:
    """Runs the efficient parameter randomisation test (Hedström et al., 2023): does noise make a map more complex?

    (H' - H) / H of every map (R,): H is the entropy of the histogram of its values before the ReLU, from their lowest
    to their highest in `bins`, H' that of the map when all weights are drawn anew. Higher is better; a map that stays
    as it is has 0. NaN where H is 0. There is no comparison of maps, so none of its ways to compare; but also nothing
    that tells a map of other features from one of noise. `settings` as in `randomisation`. Cost: two explanations.
    KonkyoError: no weights, bins below 2.
    """
    if bins < 2:
        raise KonkyoError(f"bins >= 2 were expected; got {bins}")
    adapted = as_model(model)
    usual, target = _usual(adapted, images, method, seed, settings)
    ((_, module),) = _randomised(adapted.module, "cascading", 1, seed)
    arguments = {"method": method, "target": target, "seed": seed} | settings
    again = _quietly(partial(explain, replace(adapted, module=module), images, **arguments))
    before, after = (_histogram_entropy(result.signed, bins) for result in (usual, again))
    return (after - before) / before.masked_fill(before == 0, torch.nan)


def random_class(
    model: Model | nn.Module,
    images: Images,
    method: Which = "grad_cam",
    *,
    others: int = 5,
    seed: int = 0,
    **settings: Any,
) -> Sanity:
    """Runs the random class test (Sixt et al., 2020): maps of the decision against those of other classes.

    `others` classes per image are drawn by the seed. The method passes where the mean similarity is at most 0.5. A map
    that is the same for every class does not say why it is this one; on images with one object and nothing else, some
    likeness is in order. KonkyoError: a detector, or a model without class names.
    """
    adapted = as_model(model)
    if not adapted.classes:
        raise KonkyoError(f"{adapted.name} has no class names, so it is not known how many others there are")
    usual, _ = _usual(adapted, images, method, seed, settings)
    _require_some(usual)
    indices, classes = [index for index in map(_class_index, usual.targets) if index is not None], len(adapted.classes)
    if len(indices) < len(usual) or len(indices) > len(set(usual.image_index.tolist())):
        raise KonkyoError(f"one class per image is compared with others; {adapted.name} explains something else")
    generator, similarities, names = torch.Generator().manual_seed(seed), list[Tensor](), list[str]()
    if others < 1 or classes < 2:
        raise KonkyoError(f"another class was expected: others >= 1 and two classes; got {others} and {classes}")
    shifts = [torch.randperm(classes - 1, generator=generator) for _ in indices]
    for k in range(min(others, classes - 1)):
        targets = [(index + 1 + int(s[k])) % classes for index, s in zip(indices, shifts, strict=True)]
        arguments = {"method": method, "target": targets, "seed": seed} | settings
        maps = _quietly(partial(explain, adapted, images, **arguments)).maps
        similarities.append(rank_correlation(usual.maps, maps))
        names.append(f"other class {k + 1}")
    similarity = torch.stack(similarities)
    mean = float(similarity.nanmean())
    passed = not mean > ALIKE
    says = "the map depends on the class" if passed else "the map is much the same for any class"
    return Sanity("class", tuple(names), similarity, passed, f"{says}: rank correlation {mean:.2f}")


@dataclass(frozen=True, eq=False)
class Stability:
    """The result says how much maps change with what they should not depend on."""

    over: Over
    mean: Tensor
    """(R, h, w) of the maps scaled to [0, 1]."""
    deviation: Tensor
    """(R, h, w) their standard deviation: the band around the mean."""
    similarity: Tensor
    """(R,) the mean Pearson correlation of two of them; NaN where one is constant."""

    def overlay(self, image: Image.Image, row: int = 0) -> Image.Image:
        """Returns mean and deviation side by side over the picture, both on the scale from 0 to 1."""
        from konkyo.draw.overlay import overlay  # pictures are drawn only when asked for

        panels = [overlay(image, values[row], limits=(0.0, 1.0)) for values in (self.mean, self.deviation)]
        both = Image.new("RGB", (2 * image.width, image.height))
        for index, panel in enumerate(panels):
            both.paste(panel, (index * image.width, 0))
        return both


def stability(
    model: Model | nn.Module,
    images: Images,
    method: Which = "grad_cam",
    *,
    over: Over = "noise",
    samples: int = 8,
    radius: float = 0.05,
    layers: Sequence[str] = (),
    seed: int = 0,
    **settings: Any,
) -> Stability:
    """Returns the maps of an image again and again, over what should not matter: their mean, deviation and likeness.

    `over` "seed": other draws of a method that draws; "noise": `samples` images with Gaussian noise of `radius` times
    the image's range. "mirror": the image and its mirror image, whose map is mirrored back; "layer": the `layers`
    named. What is explained stays what the model decided on for the image as it is. KonkyoError: fewer than two maps,
    images that are not a prepared tensor for noise and mirror.
    """
    adapted = as_model(model)
    _, target = _usual(adapted, images, method, seed, settings)

    def maps(of: Images = images, **changes: Any) -> Tensor:
        arguments = {"target": target, "seed": seed} | settings | changes
        return _quietly(partial(explain, adapted, of, method=method, **arguments)).maps

    if over == "mirror" and adapted.task.instances:
        raise KonkyoError("the mirror image has its boxes elsewhere; over='mirror' is for classifiers")
    if over in ("noise", "mirror") and not isinstance(images, Tensor):
        raise KonkyoError("noise and mirror images are made of a prepared tensor (N, C, H, W)")
    if over == "seed":
        variants = [maps(seed=seed + k) for k in range(samples)]
    elif over == "noise":
        assert isinstance(images, Tensor)
        generator = torch.Generator().manual_seed(seed)
        flat = images.flatten(1)
        spread = radius * (flat.amax(1) - flat.amin(1)).view(-1, *[1] * (images.ndim - 1))
        noises = (torch.randn(images.shape, generator=generator).to(images) for _ in range(samples))
        variants = [maps(images + spread * noise) for noise in noises]
    elif over == "mirror":
        assert isinstance(images, Tensor)
        arguments = {"target": target, "seed": seed} | settings
        result = _quietly(partial(explain, adapted, images, method=method, **arguments))
        if any(as_target(explained).of_place() for explained in result.targets if not isinstance(explained, str)):
            raise KonkyoError("the mirror image has its regions and joints elsewhere; over='mirror' is for classes")
        variants = [result.maps, maps(images.flip(-1)).flip(-1)]
    elif over == "layer":
        variants = [maps(layer=layer) for layer in layers]
    else:
        raise KonkyoError(f"over is 'seed', 'noise', 'mirror' or 'layer'; got {over!r}")
    if len(variants) < 2:
        raise KonkyoError(f"at least two maps are compared; got {len(variants)}: more samples or layers")
    stack = on_finest([min_max(m) for m in variants])
    pairs = [pearson(a.flatten(1), b.flatten(1)) for i, a in enumerate(stack) for b in stack[i + 1 :]]
    return Stability(over, stack.mean(0), stack.std(0, correction=0), torch.stack(pairs).mean(0))


_WORDS = {"rank": "rank correlation", "ssim": "structural similarity", "pearson": "correlation"}


def _alike(maps: Tensor, others: Tensor, likeness: Likeness) -> Tensor:
    """Tells how alike maps (R, *grid) are without their signs, NaN for constant ones. -> (R,)"""
    if likeness == "rank":
        return rank_correlation(maps, others)
    one, other = maps.abs(), resize(others, tuple(maps.shape[1:])).abs()
    return pearson(one.flatten(1), other.flatten(1)) if likeness == "pearson" else ssim(min_max(one), min_max(other))


def _histogram_entropy(maps: Tensor, bins: int) -> Tensor:
    """Computes the entropy of every map's values in bins from the lowest to the highest, in nats. -> (R,)"""
    counts = torch.stack([torch.histc(m.float().cpu(), bins) for m in maps])
    entropies: Tensor = torch.special.entr(counts / counts.sum(1, keepdim=True)).sum(1)
    return entropies


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's correlation of the absolute values of maps (R, *grid), NaN for constant ones. -> (R,)"""
    return spearman(maps.abs().flatten(1), resize(others, tuple(maps.shape[1:])).abs().flatten(1))


def _class_index(target: Target | str) -> int | None:
    """Returns the class that a target is of; None for other targets, and for the name of one."""
    return None if isinstance(target, str) else as_target(target).class_index


def _require_some(usual: Explanation) -> None:
    """Raises KonkyoError where no map can be compared, because each has one value everywhere."""
    if rank_correlation(usual.maps, usual.maps).isnan().all():
        raise KonkyoError(f"every map of {usual.method} is blank, so there is nothing to compare")


def _usual(model: Model, images: Images, method: Which, seed: int, settings: dict[str, Any]) -> tuple[Explanation, Any]:
    """Returns the maps of the network as it is, and what they explain, to be asked for again."""
    usual = _quietly(partial(explain, model, images, method=method, seed=seed, **settings))
    settings.pop("target", None)
    if not len(usual):
        raise KonkyoError(f"{model.name} decides on nothing here, so there is no map to compare")
    groups: dict[int, list[Any]] = {}
    for image, target in zip(usual.image_index.tolist(), usual.targets, strict=True):
        groups.setdefault(image, []).append(target)
    count = len(images) if isinstance(images, (Tensor, list, tuple)) else 1
    if len(groups) < count:
        raise KonkyoError(f"{model.name} decides on nothing in {count - len(groups)} of the images; leave those out")
    if len(groups) == 1:
        return usual, Each(*usual.targets)
    if any(len(group) > 1 for group in groups.values()):
        raise KonkyoError("several targets of several images: give the images one by one")
    return usual, list(usual.targets)


def _quietly(run: Callable[[], Explanation]) -> Explanation:
    with silenced():  # blank maps are expected of networks without sense
        return run()


def _randomised(module: nn.Module, order: Order, steps: int, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """(what is random, a copy of the network), the part next to the output first, or "bottom_up" that to the input."""
    names = [name for name, part in module.named_modules() if any(True for _ in part.parameters(recurse=False))]
    names = names if order == "bottom_up" else names[::-1]
    if not names:
        raise KonkyoError("a network without weights has none to be drawn anew")
    count = min(steps, len(names))
    bounds = [round(k * len(names) / count) for k in range(count + 1)]
    changed = copy.deepcopy(module)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start, end in pairwise(bounds):
            if order == "independent":
                changed = copy.deepcopy(module)
            for name in names[start:end]:
                draw_anew(changed.get_submodule(name))
            span = names[end - 1] if end - start == 1 else f"{names[start]} ... {names[end - 1]}"
            yield span, changed

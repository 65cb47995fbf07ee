"""Rules of relevance: which rule linear maps follow by their kind and place, and how everything else is shared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from konkyo.errors import KonkyoError, unknown

Addition: TypeAlias = Literal["ratio", "epsilon"]
"""How the relevance of a sum of two is shared: by their sizes, or by their signed values."""
ProductShare: TypeAlias = Literal["uniform", "gate"]
"""How the relevance of a product of two is shared: half each, or all to the one that is no sigmoid's output."""
AttentionRule: TypeAlias = Literal["cp", "attnlrp"]
"""Whether an attention's probabilities are constants (Ali et al., 2022), or get relevance (Achtibat et al., 2024)."""
BiasRule: TypeAlias = Literal["absorb", "leave_out"]
"""Whether what a linear map adds takes its part of the relevance, or none."""
Start: TypeAlias = Literal["logit", "one", "contrastive"]
"""The output's relevance: its part of the score; the same scaled to a sum of 1; 1 for the class and -1/K for others."""


@dataclass(frozen=True)
class Rule:
    """This is a rule of linear maps, with its numbers: those of gamma, or alpha and beta."""

    name: str
    numbers: tuple[float, ...] = ()


_DEFAULTS: dict[str, tuple[float, ...]] = {
    "epsilon": (),
    "gamma": (0.25,),
    "alpha_beta": (2.0, 1.0),
    "z_plus": (),
    "flat": (),
    "w_square": (),
    "box": (),
}
"""Every rule by its name, with its numbers where a user gives none."""
_AT_PIXELS = ("flat", "w_square", "box")
"""The rules that give relevance to what is 0: they have their place at the image."""


def rule_of(text: str, gamma: float = 0.25) -> Rule:
    """Reads a rule: its name, or its name with numbers, as in "gamma(0.5)" and "alpha_beta(2, 1)".

    KonkyoError: no such rule, or numbers that it does not take.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text) if isinstance(text, str) else None
    if match is None or match[1] not in _DEFAULTS:
        raise unknown("relevance rule", text, list(_DEFAULTS))
    usual = (gamma,) if match[1] == "gamma" else _DEFAULTS[match[1]]
    try:
        numbers = usual if match[2] is None else tuple(float(part) for part in match[2].split(","))
    except ValueError:
        numbers = (float("nan"),)
    if len(numbers) != len(usual) or any(not 0 <= number < float("inf") for number in numbers):
        raise KonkyoError(f"rule {match[1]} takes {len(usual)} numbers of 0 or more; got {text!r}")
    if match[1] == "alpha_beta" and abs(numbers[0] - numbers[1] - 1) > 1e-9:
        raise KonkyoError(f"alpha - beta is 1, or relevance is not kept; got {text!r}")
    return Rule(match[1], numbers)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """These are the rules of one way of handing relevance down."""

    conv: Rule
    linear: Rule
    first: Rule | None = None
    """Of the linear maps that read the image itself; None: that of their kind."""
    epsilon: float = 1e-6
    addition: Addition = "ratio"
    product: ProductShare = "uniform"
    attention: AttentionRule = "cp"
    bias: BiasRule = "absorb"
    start: Start = "logit"
    fold: bool = True
    """Whether a batch norm (or a factor and a summand per channel) after a linear map is part of that map."""
    smooth: bool = True
    """Whether there are rules beyond those of piecewise linear functions."""
    negated: bool = False
    """Whether the linear map that puts out the scores runs with negated weights on the way back."""

    def __post_init__(self) -> None:
        for kind in ("conv", "linear"):
            if (rule := getattr(self, kind)).name in _AT_PIXELS:
                raise KonkyoError(
                    f"rule {rule.name} gives relevance to values that are 0, so its place is at the image ('first'); "
                    f"got it for {kind!r}"
                )
        if not 0 <= self.epsilon < float("inf"):
            raise KonkyoError(f"epsilon is 0 or more; got {self.epsilon}")


Z_PLUS = Rule("z_plus")
CONTRASTIVE = Rules(
    conv=Z_PLUS,
    linear=Z_PLUS,
    epsilon=0.0,
    addition="epsilon",
    bias="leave_out",
    start="contrastive",
    fold=False,
    smooth=False,
)
"""The rules of `Probe.relevance`."""
COMPOSITES: Mapping[str, Mapping[str, str]] = {
    "epsilon": {"conv": "epsilon", "linear": "epsilon"},
    "epsilon_plus": {"conv": "z_plus", "linear": "epsilon"},
    "epsilon_plus_flat": {"conv": "z_plus", "linear": "epsilon", "first": "flat"},
    "epsilon_gamma_box": {"conv": "gamma", "linear": "epsilon", "first": "box"},
    "epsilon_alpha2_beta1": {"conv": "alpha_beta(2, 1)", "linear": "epsilon"},
    "epsilon_alpha2_beta1_flat": {"conv": "alpha_beta(2, 1)", "linear": "epsilon", "first": "flat"},
}
"""The composites: the rule of every kind of linear map, by name."""


def composed(
    composite: str,
    *,
    rules: Mapping[str, str] | None = None,
    gamma: float = 0.25,
    **settings: Any,
) -> Rules:
    """Returns the rules of a composite, some of them replaced: "conv", "linear" and "first" by name.

    `settings` are other fields of `Rules`. KonkyoError: an unknown composite, kind or rule.
    """
    if composite not in COMPOSITES:
        raise unknown("composite", composite, list(COMPOSITES))
    named = dict(COMPOSITES[composite])
    for kind, text in (rules or {}).items():
        if kind not in ("conv", "linear", "first"):
            raise unknown("kind of linear map", kind, ["conv", "linear", "first"])
        named[kind] = text
    return Rules(**cast(dict[str, Any], {kind: rule_of(text, gamma) for kind, text in named.items()}), **settings)

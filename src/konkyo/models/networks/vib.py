"""Variational information bottleneck: a head that sees the features through noise, and so keeps what it needs.

After Komatsu et al., "A study on visual explanation by image classification with a variational information bottleneck",
and Alemi et al. (2017). What the text leaves open is an option of `Noise` or `VIBLoss`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.engine.capture import untouched
from konkyo.engine.forward import at_least_float32
from konkyo.errors import KonkyoError, unknown
from konkyo.models import Model
from konkyo.models.networks.backbone import as_backbone, fitting
from konkyo.utils.tensors import cross_entropy, grid_mean

Source: TypeAlias = Literal["attention", "linear", "fc", "constant"]
Variant: TypeAlias = Literal["affine", "plain"]
Reduction: TypeAlias = Literal["sum", "mean"]
SOURCES: tuple[Source, ...] = ("attention", "linear", "fc", "constant")
VARIANTS: tuple[Variant, ...] = ("affine", "plain")
REDUCTIONS: tuple[Reduction, ...] = ("sum", "mean")
LEAST = 1e-6
"""Added to every standard deviation."""
_MULTIPLE = 8
"""Fused attention on GPUs takes vectors of a multiple of so many numbers."""


@dataclass(frozen=True)
class Noise:
    """This says how a channel's standard deviation is made: `source` gives a value s, of which `variant` makes it.

    `source`, with the means mu (N, C) of the grid's channels:

    - "attention": s = softmax(Q Q^T / (temperature sqrt(P))) mu, the channels' attention to each other; Q are the
      channels' P values, each channel's standardised. The default.
    - "linear": the same with elu(Q) + 1 for kernel instead of the softmax: not equal to it, and without a C x C matrix.
    - "fc": s = V mu + c, learnt.
    - "constant": s = 1: noise that does not depend on the image.

    `variant`: "affine", std = softplus(a s + b) + 1e-6, with a = 1 and b = `offset` per channel at first, both learnt;
    or "plain", std = |s| + 1e-6. (After a ReLU nothing is negative, and |s| = s.) Plain ties the standard deviation to
    the means: where the two are equal, a channel's divergence from N(0, 1) is ln(2) / 2 nats at least.

    With `offset` 0 the noise begins near that of N(0, 1), whatever the means are, and beta has to do with it from the
    first step. With -5, the offset of Alemi et al., it begins at 0.007: a short training never gets to a noise that
    hides anything, and then the KL acts on the means alone, as weight decay would.

    KonkyoError: an unknown source or variant, a temperature that is not positive.
    """

    source: Source = "attention"
    variant: Variant = "affine"
    offset: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise unknown("source of noise", self.source, SOURCES)
        if self.variant not in VARIANTS:
            raise unknown("variant of noise", self.variant, VARIANTS)
        if not 0 < self.temperature < math.inf or not math.isfinite(self.offset):
            raise KonkyoError(f"a positive temperature and a finite offset were expected; got {self}")


NOISES: dict[str, Noise] = {
    "affine": Noise(),
    "plain": Noise(variant="plain"),
    "linear": Noise("linear"),
    "fc": Noise("fc"),
    "constant": Noise("constant"),
}
"""Kinds of noise by name: of the channels' attention, learnt on top ("affine") or as it is ("plain"); the others are
affine, of another source. "constant" is the same for all images."""


class VIBOutput(NamedTuple):
    """What a VIB head puts out in training."""

    logits: Tensor
    """(L, N, K): of L samples of every image's code."""
    mean: Tensor
    """(N, C): the code's mean, that of the grid's channels."""
    std: Tensor
    """(N, C): the code's standard deviation."""
    kl: Tensor
    """(N,): the divergence of the code from N(0, 1), summed over channels, in nats."""


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL[N(mean, std^2) || N(0, 1)] of every image, summed over channels, in nats. (N, C), (N, C) -> (N,)

    1/2 sum_d (mean^2 + std^2 - 1 - 2 log std), in float32 at least.
    """
    mean, std = at_least_float32(mean), at_least_float32(std)
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum(-1)


def bits_of_channels(mean: Tensor, std: Tensor) -> Tensor:
    """Tells how many bits of an image get through every channel's noise, over images. (N, C), (N, C) -> (C,)

    1/2 log2(1 + S^2 / E[std^2]), the capacity of a channel with Gaussian noise (Shannon), where S is the standard
    deviation of the means over images. Noise as large as the differences between images lets half a bit through.
    """
    mean, std = at_least_float32(mean), at_least_float32(std)
    return 0.5 * torch.log2(1 + mean.var(0, correction=0) / std.square().mean(0))


def channel_attention(grid: Tensor, values: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(Q Q^T / (temperature sqrt(P))) applied to a value per channel. (N, C, h, w), (N, C) -> (N, C)

    Q (C, P = h w) are the grid's channels, each standardised over its places (layer norm without weights). Channels are
    the tokens of a fused attention, so no C x C matrix is kept.
    """
    places = grid[0, 0].numel()
    queries = functional.layer_norm(grid.flatten(2), (places,))
    # Queries, keys and values of one width let a fused kernel run: zeros change no product.
    width = -(-places // _MULTIPLE) * _MULTIPLE
    queries = functional.pad(queries, (0, width - places))[:, None]
    padded = functional.pad(values[:, None, :, None].to(queries.dtype), (0, width - 1))
    scale = 1 / (temperature * math.sqrt(places))
    return functional.scaled_dot_product_attention(queries, queries, padded, scale=scale)[:, 0, :, 0]


def linear_attention(grid: Tensor, values: Tensor) -> Tensor:
    """Returns attention with elu(Q) + 1 as kernel (Katharopoulos et al., 2020). (N, C, h, w), (N, C) -> (N, C)

    Q (C, P = h w) as of `channel_attention`, and so are `grid` and `values`; not equal to it, and linear in C.
    """
    features = functional.elu(functional.layer_norm(grid.flatten(2), (grid[0, 0].numel(),))) + 1
    summed = torch.einsum("ncp,nc->np", features, values.to(features.dtype))
    return torch.einsum("ncp,np->nc", features, summed) / torch.einsum("ncp,np->nc", features, features.sum(1))


def sampled(mean: Tensor, std: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns samples of N(mean, std^2), differentiable (Kingma & Welling, 2014). (N, C), (N, C) -> (samples, N, C)"""
    noise = torch.randn(samples, *mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + std * noise


class VIBHead(nn.Module):
    """A last feature grid (N, channels, h, w) -> logits (N, classes); in training `VIBOutput`, of `samples` samples.

    mu = mean over the grid, z = mu + std eps with eps ~ N(0, 1), logits = W z + b (Komatsu et al., Section 3.1). In
    eval mode z = mu: the standard deviation is not computed, and CAM is exact: the mean of W_c . grid, plus b_c, is
    the logit. Means, standard deviations and divergences are in float32 at least, under autocast too. eps comes from
    torch's own random state. KonkyoError: fewer than one sample.
    """

    def __init__(self, channels: int, classes: int, *, noise: Noise | None = None, samples: int = 1) -> None:
        super().__init__()
        if samples < 1:
            raise KonkyoError(f"at least one sample of the code was expected; got {samples}")
        self.noise, self.samples = noise or Noise(), samples
        self.fc = nn.Linear(channels, classes)
        self.spread = nn.Linear(channels, channels) if self.noise.source == "fc" else None
        if self.noise.variant == "affine":
            self.scale = nn.Parameter(torch.ones(channels))
            self.offset = nn.Parameter(torch.full((channels,), float(self.noise.offset)))

    def forward(self, grid: Tensor) -> VIBOutput | Tensor:
        """Maps (N, C, h, w) -> logits (N, K); in training `VIBOutput`."""
        if not self.training:
            return self.scores(grid_mean(at_least_float32(grid)))
        mean, std = self.code(grid)
        return VIBOutput(self.scores(sampled(mean, std, self.samples)), mean, std, kl_divergence(mean, std))

    def code(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean and the standard deviation of the code. (N, C, h, w) -> (N, C), (N, C)"""
        with torch.autocast(grid.device.type, enabled=False):  # attention would be in 16 bits
            grid = at_least_float32(grid)
            mean = grid_mean(grid)
            source, temperature = self.noise.source, self.noise.temperature
            if source == "attention":
                value = channel_attention(grid, mean, temperature)
            elif source == "linear":
                value = linear_attention(grid, mean)
            elif self.spread is not None:
                value = self.spread(mean.to(self.spread.weight.dtype)).to(mean.dtype)
            else:
                value = torch.ones_like(mean)
            if self.noise.variant == "affine":
                return mean, functional.softplus(self.scale * value + self.offset).to(mean.dtype) + LEAST
            return mean, value.abs() + LEAST

    def scores(self, codes: Tensor) -> Tensor:
        """Returns the logits of codes. (..., C) -> (..., K)"""
        logits: Tensor = self.fc(codes.to(self.fc.weight.dtype))
        return logits


class VIBClassifier(nn.Module):
    """A backbone and a `VIBHead`: images -> logits (N, classes); in training `VIBOutput`, to be given to a `VIBLoss`.

    `backbone`: a classifier, of which a copy without its head is taken (`features_of`), or a `Backbone`. What maps are
    made of (`konkyo.explain`) is the network in eval mode: features, mean over the grid, one linear layer.
    """

    def __init__(
        self, backbone: nn.Module | Model, classes: int, *, noise: Noise | None = None, samples: int = 1
    ) -> None:
        super().__init__()
        self.backbone = as_backbone(backbone)
        self.head = VIBHead(self.backbone.channels, classes, noise=noise, samples=samples)
        fitting(self.head, self.backbone)

    def forward(self, images: Tensor) -> VIBOutput | Tensor:
        """Maps images (N, 3, H, W) -> logits (N, K); in training `VIBOutput`."""
        output: VIBOutput | Tensor = self.head(self.backbone(images))
        return output

    def predictive(self, images: Tensor, samples: int = 12, *, seed: int = 0) -> Tensor:
        """Averages class probabilities over samples of the code, in eval mode, without a graph. -> (N, K)"""
        with untouched(self), torch.no_grad():
            mean, std = self.head.code(self.backbone(images))
            generator = torch.Generator(mean.device).manual_seed(seed)
            codes = sampled(mean, std, samples, generator)
            return at_least_float32(self.head.scores(codes)).softmax(-1).mean(0)


@dataclass(frozen=True)
class VIBLoss:
    """J = E[-log q(y | z)] + beta KL[p(z | x), N(0, 1)] (Komatsu et al., Eq. 2), of a VIB network's `VIBOutput`.

    The expectation is over the samples of the code; both terms are means over images. `reduction` of the divergence
    over channels: "sum" is the definition; "mean" divides by their number, as if beta were so much smaller
    (`effective_beta`). KonkyoError: a beta that is negative or no number, an unknown reduction.
    """

    beta: float
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise KonkyoError(f"beta >= 0 was expected; got {self.beta}")
        if self.reduction not in REDUCTIONS:
            raise unknown("reduction", self.reduction, REDUCTIONS)

    def __call__(
        self, output: VIBOutput | Tensor, labels: Tensor, *, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the "loss", and what it is made of, without a graph; scalars, in nats but for "bits".

        "ce": the cross-entropy. "kl", "bits": the divergence summed over channels, a mean over images: an upper bound
        of the information that the code has of the image. "kl_over_log_k": the same in units of log K nats, the most
        that a label of K classes can hold. "information": log K - ce, a lower bound of what the code has of the class,
        when all K are as frequent. "mean", "std": the code's, on average. `labels`: (N,) classes, or (N, K)
        probabilities. `weights` (K,): of the classes. KonkyoError: the output of a network in eval mode.
        """
        if not isinstance(output, VIBOutput):
            raise KonkyoError(
                "a VIBLoss is of the output in training mode, a VIBOutput; in eval mode a VIB network puts out logits "
                f"for any loss; got {type(output).__name__}"
            )
        logits = at_least_float32(output.logits)
        samples, _, classes = logits.shape
        repeated = labels.repeat(samples, *[1] * (labels.ndim - 1))
        ce, kl = cross_entropy(logits.flatten(0, 1), repeated, weights), output.kl.mean()
        terms = {
            "ce": ce,
            "kl": kl,
            "bits": kl / math.log(2),
            "kl_over_log_k": kl / math.log(classes) if classes > 1 else torch.full_like(kl, math.inf),
            "information": math.log(classes) - ce,
            "mean": output.mean.mean(),
            "std": output.std.mean(),
        }
        loss = ce + self.effective_beta(output.mean.shape[1]) * kl
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def effective_beta(self, channels: int) -> float:
        """Returns the beta that does the same to the divergence summed over so many channels.

        >>> VIBLoss(1.0, "mean").effective_beta(2048)
        0.00048828125
        """
        return self.beta / channels if self.reduction == "mean" else self.beta

    def describe(self, channels: int) -> str:
        """Returns the loss in a line, for logs.

        >>> VIBLoss(0.1, "mean").describe(2048)
        'beta 0.1 times the KL averaged over 2048 channels: 4.88e-05 times their sum'
        """
        if self.reduction == "sum":
            return f"beta {self.beta:g} times the KL summed over {channels} channels"
        return (
            f"beta {self.beta:g} times the KL averaged over {channels} channels: "
            f"{self.effective_beta(channels):.3g} times their sum"
        )

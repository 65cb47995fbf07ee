"""Methods as slow, literal transcriptions of their formulas, for one image and one class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import SwinTransformer

from helpers.networks import Attention, SmallResNet, seeded

LAYER = "stage3"
Fold = Callable[[Tensor], Tensor]
OPTIONS = {"integrated_gradients": {"steps": 7}}


class Literal:
    """Activations and gradients by plain autograd over a network cut in two, and methods as loops over channels."""

    def __init__(self, network: SmallResNet, image: Tensor, label: int, layer: str = LAYER) -> None:
        stages = ["stem", "stage1", "stage2", "stage3"]
        cut = stages.index(layer) + 1
        self.network, self.image, self.label = network, image, label
        with torch.no_grad():
            x = image
            for stage in stages[:cut]:
                x = getattr(network, stage)(x)
        self.A = x[0]

        def tail(activation: Tensor) -> Tensor:
            y = activation[None].clone()
            for stage in stages[cut:]:
                y = getattr(network, stage)(y)
            return network.head(y.mean((2, 3)))[0]

        self.tail = tail
        leaf = self.A.clone().requires_grad_()
        self.y = tail(leaf)[label]
        (self.G,) = torch.autograd.grad(self.y, leaf)
        self.y = self.y.detach()

    def weighted(self, weights: list[Tensor]) -> Tensor:
        total = torch.zeros_like(self.A[0])
        for weight, channel in zip(weights, self.A, strict=True):
            total += weight * channel
        return total

    def cam(self) -> Tensor:
        return self.weighted(list(self.network.head.weight[self.label].detach()))

    def grad_cam(self) -> Tensor:
        return self.weighted([g.sum() / g.numel() for g in self.G]).relu()

    def grad_cam_pp(self) -> Tensor:
        """Eq. 19 of the paper as it stands, at every position; positions with no positive gradient have no weight."""
        weights = []
        for a, g in zip(self.A, self.G, strict=True):
            w = torch.zeros((), dtype=a.dtype)
            for i in range(a.shape[0]):
                for j in range(a.shape[1]):
                    if g[i, j] > 0:
                        w += g[i, j] ** 2 / (2 * g[i, j] ** 2 + a.sum() * g[i, j] ** 3) * g[i, j]
            weights.append(w)
        return self.weighted(weights).relu()

    def layer_cam(self) -> Tensor:
        return sum(g.clamp(min=0) * a for a, g in zip(self.A, self.G, strict=True)).relu()

    def hires_cam(self) -> Tensor:
        return sum(g * a for a, g in zip(self.A, self.G, strict=True))

    def xgrad_cam(self) -> Tensor:
        return self.weighted(
            [(g * a / a.sum()).sum() if a.sum() != 0 else a.sum() for a, g in zip(self.A, self.G, strict=True)]
        ).relu()

    def grad_cam_elementwise(self) -> Tensor:
        return sum((g * a).relu() for a, g in zip(self.A, self.G, strict=True))

    def eigen_cam(self) -> Tensor:
        return self.first_component(self.A)

    def first_component(self, values: Tensor) -> Tensor:
        matrix = values.flatten(1).T.numpy()
        _, _, vt = np.linalg.svd(matrix, full_matrices=False)
        projection = matrix @ vt[0]
        return torch.from_numpy(projection * np.sign(projection[np.abs(projection).argmax()])).view_as(values[0])

    def eigen_grad_cam(self) -> Tensor:
        component = self.first_component(self.A * self.G)
        return component * (component * (self.A * self.G).sum(0)).sum().sign()

    def ablation_cam(self) -> Tensor:
        weights = []
        for k in range(len(self.A)):
            without = self.A.clone()
            without[k] = 0
            weights.append((self.y - self.tail(without)[self.label].detach()) / self.y.abs())
        return self.weighted(weights).relu()

    def score_cam(self) -> Tensor:
        scores, alive = [], []
        for channel in self.A:
            mask = functional.interpolate(channel[None, None], self.image.shape[2:], mode="bilinear")
            if mask.max() == mask.min():
                continue
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            with torch.no_grad():
                baseline = self.network(torch.zeros_like(self.image))[0, self.label]
                scores.append(self.network(self.image * mask)[0, self.label] - baseline)
            alive.append(channel)
        weights = torch.stack(scores).softmax(0)
        return sum(w * a for w, a in zip(weights, alive, strict=True)).relu()

    def gradient(self) -> Tensor:
        return self.input_gradient(self.image).sum(0)

    def saliency(self) -> Tensor:
        return self.input_gradient(self.image).abs().max(0).values

    def input_gradient(self, image: Tensor) -> Tensor:
        leaf = image.clone().requires_grad_()
        return torch.autograd.grad(self.network(leaf)[0, self.label], leaf)[0][0]

    def input_x_gradient(self) -> Tensor:
        return (self.input_gradient(self.image) * self.image[0]).sum(0)

    def integrated_gradients(self) -> Tensor:
        total = torch.zeros_like(self.image[0])
        for k in range(1, 8):
            total += self.input_gradient(self.image * (k / 7)) / 7
        return (total * self.image[0]).sum(0)


class LiteralAt(Literal):
    """Literal formulas at any module: its output is read and replaced by hooks of the test's own."""

    def __init__(self, network: nn.Module, image: Tensor, label: int, module: nn.Module, fold: Fold) -> None:
        self.network, self.image, self.label = network, image, label
        raws: list[Tensor] = []
        with torch.no_grad():
            handle = module.register_forward_hook(lambda _m, _a, out: raws.append(out.clone()))
            network(image)
            handle.remove()
        raw = raws[-1]
        self.A = fold(raw)[0]

        def tail(activation: Tensor) -> Tensor:
            places = fold(torch.arange(raw.numel()).view(raw.shape))[0]  # where each value of the grid is in the raw
            replaced = raw.flatten().index_put((places.flatten(),), activation.flatten()).view(raw.shape)
            handle = module.register_forward_hook(lambda *_: replaced)
            try:
                return network(image)[0]
            finally:
                handle.remove()

        self.tail = tail
        leaf = self.A.clone().requires_grad_()
        y = tail(leaf)[label]
        (self.G,) = torch.autograd.grad(y, leaf)
        self.y = y.detach()


def swin() -> nn.Module:
    network = SwinTransformer([4, 4], 12, [2, 2], [2, 2], [2, 2], stochastic_depth_prob=0.0, num_classes=5)
    return seeded(network)


def references(kind: str, x: Tensor, label: int) -> tuple[nn.Module, str, LiteralAt]:
    """(the network, one of its layers, literal formulas there)"""
    if kind == "vit":
        network = seeded(Attention(prefix=2))
        fold = lambda raw: raw[:, 2:].unflatten(1, (4, 5)).movedim(-1, 1)
        return network, "norm", LiteralAt(network, x, label, network.norm, fold)
    network = swin()
    return network, "permute", LiteralAt(network, x, label, network.permute, lambda raw: raw)


def up(values: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def minmax(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min())


class Slow:
    """One image, one class: the formulas as loops over channels, places and steps. All maps before a final ReLU."""

    def __init__(self, literal: Literal) -> None:
        self.network, self.x, self.label = literal.network, literal.image, literal.label
        self.A, self.G, self.tail = literal.A, literal.G, literal.tail
        self.size = tuple(self.x.shape[2:])

    @torch.no_grad()
    def logit(self, image: Tensor) -> Tensor:
        return self.network(image)[0, self.label]

    @torch.no_grad()
    def probability(self, image: Tensor) -> Tensor:
        return self.network(image).softmax(1)[0, self.label]

    def mask(self, k: int) -> Tensor | None:
        """None for a constant channel."""
        return minmax(up(self.A[k], self.size)) if self.A[k].max() > self.A[k].min() else None

    def softmaxed(self, score: Callable[[Tensor], Tensor]) -> Tensor:
        """The channels with the softmax of the scores of their masks as weights."""
        masks = {k: m for k in range(len(self.A)) if (m := self.mask(k)) is not None}
        raised = {k: torch.exp(score(m)) for k, m in masks.items()}
        return sum(raised[k] / sum(raised.values()) * self.A[k] for k in masks)

    def score_cam(self) -> Tensor:
        return self.softmaxed(lambda mask: self.logit(self.x * mask))

    def ss_cam(self, fields: Tensor, noise: str) -> Tensor:
        def score(mask: Tensor) -> Tensor:
            total = torch.zeros((), dtype=torch.double)
            for field in fields:
                image = self.x * (mask + field) if noise == "mask" else self.x * mask + field
                total += self.logit(image)
            return total / len(fields)

        return self.softmaxed(score)

    def is_cam(self, steps: int, scale: str) -> Tensor:
        def score(mask: Tensor) -> Tensor:
            total, grown = torch.zeros((), dtype=torch.double), torch.zeros_like(self.x)
            for i in range(1, steps + 1):
                grown = grown + self.x * mask * i / steps if scale == "cumulative" else self.x * mask * i / steps
                total += self.logit(grown)
            return total / steps

        return self.softmaxed(score)

    def group_cam(self, groups: int, variant: str) -> Tensor:
        per_group = -(-len(self.A) // groups)
        radius = [min(25, s - 1) for s in self.size]
        kernel = torch.ones(1, 1, *[2 * r + 1 for r in radius], dtype=torch.double)
        for i in range(kernel.shape[2]):
            for j in range(kernel.shape[3]):
                kernel[0, 0, i, j] = np.exp(-((i - radius[0]) ** 2 + (j - radius[1]) ** 2) / (2 * 50**2))
        padded = functional.pad(self.x, (radius[1], radius[1], radius[0], radius[0]), mode="reflect")
        blurred = functional.conv2d(padded.movedim(1, 0), kernel / kernel.sum()).movedim(0, 1)
        total = torch.zeros(self.size, dtype=torch.double)
        for start in range(0, len(self.A), per_group):
            members = range(start, min(start + per_group, len(self.A)))
            group = sum(self.G[k].mean() * self.A[k] for k in members).clamp(min=0)
            if variant == "paper":
                group = torch.where(group > np.percentile(group.numpy(), 70), group, 0.0)
            if group.max() > group.min():
                mask = minmax(up(group, self.size))
                gain = self.probability(self.x * mask + blurred * (1 - mask)) - self.probability(blurred)
                total += gain.clamp(min=0) * up(group, self.size)
        return total

    def recipro_cam(self, mask: str) -> Tensor:
        height, width = self.A.shape[1:]
        result = torch.zeros(height, width, dtype=torch.double)
        kernel = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.double) / 16
        for i in range(height):
            for j in range(width):
                framed = torch.zeros(height + 2, width + 2, dtype=torch.double)
                if mask == "gaussian":
                    framed[i : i + 3, j : j + 3] = kernel
                else:
                    framed[i + 1, j + 1] = 1
                with torch.no_grad():
                    result[i, j] = self.tail(self.A * framed[1:-1, 1:-1]).softmax(0)[self.label]
        return result

    def poly_layer(self, variant: str) -> Tensor:
        total = torch.zeros_like(self.A[0])
        for channel in self.A:
            if channel.max() > channel.min():
                mask = up(minmax(channel), self.size)
                weight = torch.zeros((), dtype=torch.double)
                if variant in "+±":
                    weight = weight + self.probability(self.x * mask)
                if variant in "-±":
                    weight = weight + self.probability(self.x) - self.probability(self.x * (1 - mask))
                total += weight.clamp(min=0) * channel
        return total.clamp(min=0)

    def opti_cam(self, steps: int, rate: float, objective: str) -> Tensor:
        u = torch.zeros(len(self.A), dtype=torch.double, requires_grad=True)
        adam = torch.optim.Adam([u], lr=rate)
        for _ in range(steps):
            shares = torch.exp(u) / torch.exp(u).sum()
            mask = minmax(up(sum(w * a.clamp(min=0) for w, a in zip(shares, self.A, strict=True)), self.size))
            score = self.network(self.x * mask)[0, self.label]
            loss = -score if objective == "maximise" else (self.logit(self.x) - score).abs()
            adam.zero_grad()
            (u.grad,) = torch.autograd.grad(loss, u)
            adam.step()
        shares = u.detach().softmax(0)
        return sum(w * a.clamp(min=0) for w, a in zip(shares, self.A, strict=True))

    def occlusion(self, window: int, stride: int, baseline: float) -> Tensor:
        height, width = self.size
        total, count = torch.zeros(2, height, width, dtype=torch.double)
        top = 0
        while True:
            left = 0
            while True:
                image = self.x.clone()
                image[:, :, top : top + window, left : left + window] = baseline
                total[top : top + window, left : left + window] += self.probability(self.x) - self.probability(image)
                count[top : top + window, left : left + window] += 1
                if left + window >= width:
                    break
                left += stride
            if top + window >= height:
                break
            top += stride
        return total / count

"""Maps from other ways back through the network: guided ReLUs, relevance, and the gradients of every bias."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from konkyo.methods.base import method
from konkyo.utils.tensors import channels, grid_mean, grid_sum, min_max, resize, safe_divide, weigh

BiasScale = Literal["layer", "channel"]


@method(layer="input", holds_input=False)
def guided_backprop(guided_gradients: Tensor) -> Tensor:
    """Guided backpropagation (Springenberg et al., 2015, Sec. 3.4) is the gradient that only positive evidence reaches.

    map = max_c |R_c|, R the gradient at the input where every ReLU passes back what is positive, to where it was on. It
    draws edges well and hardly depends on the class or on the upper layers' weights (Adebayo et al., 2018). So it is a
    drawing of what the network can see, no evidence of what it used. For networks with ReLU or ReLU6.
    """
    return guided_gradients.abs().amax(1)


@method(layer="input", holds_input=False)
def deconvnet(deconv_gradients: Tensor) -> Tensor:
    """Deconvnet (Zeiler & Fergus, 2014) is the gradient with a ReLU in the place of every ReLU's own backward.

    map = max_c |R_c|, R the gradient at the input where every ReLU passes back what is positive, also to where it was
    off: of the image it knows only where maxima were pooled. It depends on the class as little as guided_backprop, and
    is no evidence of what the network used. For networks with ReLU or ReLU6.
    """
    return deconv_gradients.abs().amax(1)


@method
def guided_grad_cam(guided_gradients: Tensor, activations: Tensor, gradients: Tensor) -> Tensor:
    """Guided Grad-CAM (Selvaraju et al., 2017, Sec. 3.2) is guided backpropagation where Grad-CAM lights up.

    map = max_c |R_c| * up(ReLU(sum_k mean(G_k) A_k)), at the input's resolution. What is said of guided_backprop holds
    inside the lit region; the region is Grad-CAM's.
    """
    maps = weigh(grid_mean(gradients), activations).relu()
    return guided_gradients.abs().amax(1) * resize(maps, tuple(guided_gradients.shape[2:]))


@method(rectified=True)
def relevance_cam(activations: Tensor, relevance: Tensor) -> Tensor:
    """Relevance-CAM (Lee et al., 2021) weights channels by the relevance that the output hands down to them.

    map = ReLU(sum_k w_k A_k), w_k = sum of the relevance of channel k. Relevance is 1 at the explained class and -1 / K
    at every other, handed down by the z+ rule. Works at early layers too, where gradients are noisy. For networks of
    convolutions, linear layers, batch norms, ReLUs and pooling; there is no rule for attention or layer norms.
    """
    return channels(grid_sum(relevance), activations) * activations


@method(layer="input")
def full_grad(full_gradients: Sequence[Tensor], *, scale: BiasScale = "layer") -> Tensor:
    """FullGrad (Srinivas & Fleuret, 2019, Eq. 7) adds up the gradients of the input and of every bias, each a picture.

    map = sum_c psi(x G)_c + sum over biases and channels psi(b G)_c, psi = up(min_max(|.|)). min_max is taken over all
    channels of a layer, as the authors' code does; `scale="channel"` gives every channel the same weight
    (pytorch-grad-cam). A bias is what a function adds: of a module that runs twice it counts twice, of one that another
    module shows as its own once. In a piecewise linear network the unscaled terms add up to the score; where a share is
    missing, the diagnosis is "incomplete". Layer norms, attention and smooth activations are not linear, and their sum
    claims nothing. Biases without a grid (linear layers after pooling, tokens, windows) and ReLU6's ceiling count in
    the sum, but have no place in the map. So of a transformer it shows little more than input times gradient. One
    forward and a whole backward.
    """
    first = full_gradients[0]
    total = torch.zeros_like(first[:, 0])
    for term in full_gradients:
        if term.ndim == first.ndim and term[0, 0].numel() > 1:
            sizes = term.abs()
            if scale == "layer":
                flat = sizes.flatten(1)
                low, high = flat.amin(1), flat.amax(1)
                # min_max() of every value, summed over channels before it is enlarged: enlarging is linear.
                maps = safe_divide(
                    sizes.sum(1) - sizes.shape[1] * low.view(-1, *[1] * (sizes.ndim - 2)),
                    (high - low).view(-1, *[1] * (sizes.ndim - 2)),
                )
            else:
                maps = min_max(sizes.flatten(0, 1)).view_as(sizes).sum(1)
            total += resize(maps, tuple(first.shape[2:]))
    return total

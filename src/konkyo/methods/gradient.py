"""Class activation maps from gradients, and their relatives at the input.

A: activations (N, C, *grid), G: d score / d A. All maps are (N, *grid), signed.
"""

from torch import Tensor

from konkyo.method import method
from konkyo.tensors import grid_mean, grid_sum, safe_divide, weigh


@method
def cam(class_weights: Tensor, activations: Tensor) -> Tensor:
    """CAM (Zhou et al., 2016, Eq. 2): channels weighted by the linear layer that follows global average pooling.

    map = sum_k w_k A_k. The head must be global average pooling and one linear layer.
    """
    return weigh(class_weights, activations)


@method(rectified=True)
def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017, Eq. 1-2): channels weighted by their mean gradient.

    map = ReLU(sum_k mean(G_k) A_k).
    """
    return weigh(grid_mean(gradients), activations)


@method(rectified=True)
def grad_cam_pp(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al., 2018, Eq. 19): channels weighted by their positive gradients, evened out.

    map = ReLU(sum_k w_k A_k), w_k = sum alpha_k ReLU(G_k), alpha_k = G_k^2 / (2 G_k^2 + sum(A_k) G_k^3), reduced to
    1 / (2 + sum(A_k) G_k), which is exact wherever G_k > 0 and needs no epsilon. The factor exp(score) that the paper's
    derivation adds to every gradient is one number per image and is left out. Made for activations after a ReLU.
    """
    total = grid_sum(activations).view(*activations.shape[:2], *[1] * (activations.ndim - 2))
    alpha = safe_divide(gradients.new_ones(()), 2 + total * gradients)
    return weigh(grid_sum(alpha * gradients.relu()), activations)


@method(rectified=True)
def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM (Jiang et al., 2021): every activation weighted by its own positive gradient.

    map = ReLU(sum_k ReLU(G_k) A_k). Several layers are fused as in the paper: see `explain`.
    """
    return (gradients.relu() * activations).sum(1)


@method
def hires_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM (Draelos & Carin, 2020): gradient times activation, summed over channels.

    map = sum_k G_k A_k: where the head is linear in A, the map's sum is the score without its bias.
    """
    return (gradients * activations).sum(1)


@method(rectified=True)
def xgrad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """XGrad-CAM (Fu et al., 2020): channels weighted by their gradient averaged with the activation as weight.

    map = ReLU(sum_k w_k A_k), w_k = sum(G_k A_k) / sum(A_k); 0 for a channel whose sum is 0.
    """
    return weigh(safe_divide(grid_sum(gradients * activations), grid_sum(activations)), activations)


@method
def grad_cam_elementwise(activations: Tensor, gradients: Tensor) -> Tensor:
    """Element-wise Grad-CAM (pytorch-grad-cam): the positive products of gradient and activation.

    map = sum_k ReLU(G_k A_k).
    """
    return (gradients * activations).relu().sum(1)


@method(layer="input")
def saliency(gradients: Tensor) -> Tensor:
    """Saliency (Simonyan et al., 2013, Sec. 3): the largest absolute gradient over the channels of a pixel.

    map = max_c |G_c|.
    """
    return gradients.abs().amax(1)


@method(layer="input")
def input_x_gradient(activations: Tensor, gradients: Tensor) -> Tensor:
    """Input x gradient (Shrikumar et al., 2016): the first-order effect of taking a pixel to the baseline 0.

    map = sum_c x_c G_c, HiResCAM's formula at the input.
    """
    return (activations * gradients).sum(1)

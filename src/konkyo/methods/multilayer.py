"""Maps made of the same map at the last layer of every grid size."""

from torch import Tensor

from konkyo.methods.base import method
from konkyo.methods.gradient import grad_cam_pp, hires_cam


@method(rectified=True, layer="stages", fuse="max")
def zoom_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Zoom-CAM (Shi et al., 2020) is the largest of the maps of gradient times activation over the layers.

    map = max_l N(ReLU(sum_k G_lk A_lk)), N: divided by the largest value and enlarged to the finest grid. Every layer
    counts the same, so the earliest ones, whose maps are the noisiest, show in full. The authors take every
    convolution, here it is the last layer of every grid size; `layer` takes any others.
    """
    return hires_cam.function(activations, gradients)


@method(rectified=True, layer="stages", fuse="product")
def refine_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """RefineCAM (Domeniconi et al., 2026) is the product of the Grad-CAM++ maps over the layers.

    map = prod_l N(ReLU(sum_k w_lk A_lk)), w_lk as in `grad_cam_pp`, N: divided by the largest value and enlarged to
    the finest grid. What is left is what all layers show.
    """
    return grad_cam_pp.function(activations, gradients)

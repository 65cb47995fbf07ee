"""SESS and CAMERAS: loops over windows and sizes, and pytorch-grad-cam's SESS."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.closeness import close
from helpers.networks import Attention, SmallResNet, images, seeded
from konkyo.methods.wrappers import _windows

pytestmark = pytest.mark.filterwarnings("ignore")  # maps of random weights, and the peer


def network(classes: int = 5) -> nn.Module:
    return seeded(SmallResNet(classes=classes))


def scaled(m: Tensor) -> Tensor:
    return (m - m.min()) / (m.max() - m.min())


def enlarged(m: Tensor, size: tuple[int, ...], mode: str = "bilinear") -> Tensor:
    return functional.interpolate(m[None, None], size, mode=mode)[0, 0]


# --- SESS ----------------------------------------------------------------------------------------------------------


def test_one_size_without_blur_is_the_method_itself() -> None:
    x = images(2)
    found = konkyo.explain(network(), x, method=konkyo.sess("layer_cam", scales=1, smooth=False), target=[1, 2])
    plain = konkyo.explain(network(), x, method="layer_cam", target=[1, 2]).maps
    assert found.method == "sess(layer_cam, scales=1, smooth=False)"
    for one, whole in zip(found.maps, plain, strict=True):
        close(one, scaled(enlarged(whole, tuple(x.shape[2:]))))


def test_windows_cover_a_picture_and_a_square_has_122_of_them() -> None:
    sizes = list(_windows(torch.zeros(1, 1, 224, 224), 12, 2 / 7))
    assert [tuple(of.shape[2:]) for of, _ in sizes] == [(224 + 64 * i,) * 2 for i in range(12)]
    assert sum(len(corners) for _, corners in sizes) == 122
    for of, corners in _windows(torch.zeros(1, 1, 32, 40), 5, 0.4):
        covered = torch.zeros(of.shape[2:])
        for y, x in corners:
            window = covered[y : y + 32, x : x + 40]
            assert window.shape == (32, 40)
            window += 1
        assert (covered > 0).all()


@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_sess_window_by_window(drop: float) -> None:
    net, x, label = network(), images(1), 3
    height, width = x.shape[2:]
    windows = list[tuple[float, Tensor]]()
    for picture, corners in _windows(x, 3, 0.5):
        for y, left in corners:
            crop = picture[..., y : y + height, left : left + width]
            p = float(net(crop).softmax(1)[0, label])
            m = konkyo.explain(net, crop, method="layer_cam", target=label).maps[0]
            canvas = torch.zeros(picture.shape[2:], dtype=m.dtype)
            canvas[y : y + height, left : left + width] = scaled(enlarged(m, (height, width)))
            windows.append((p, enlarged(canvas, (height, width))))
    windows = sorted(windows, key=lambda pair: pair[0])[int(len(windows) * drop) :]
    total, count = torch.zeros(height, width), torch.zeros(height, width)
    for p, m in windows:
        total, count = total + p / windows[-1][0] * m, count + (p / windows[-1][0] * m > 1e-6)
    options = {"scales": 3, "ratio": 0.5, "drop": drop, "smooth": False}
    found = konkyo.explain(net, x, method=konkyo.sess("layer_cam", **options), target=label)
    close(found.maps[0], total / count.clamp(min=1), tolerance=1e-4)


def test_sess_of_pytorch_grad_cam() -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.sess import SESS
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    net, x = network().float(), images(1).float()[..., :32, :32]
    theirs = SESS(net, [net.stage3], num_scales=3, base_method=GradCAM, smooth=False)
    expected = torch.from_numpy(theirs(x, [ClassifierOutputTarget(4)]))[0]
    found = konkyo.explain(
        net, x, method=konkyo.sess("grad_cam", scales=3, smooth=False), target=4, layer="stage3"
    ).maps[0]
    likeness = torch.corrcoef(torch.stack([scaled(found).flatten(), expected.flatten()]))[0, 1]
    assert likeness > 0.98  # they enlarge by other means


def test_sess_of_several_rows_and_what_it_refuses() -> None:
    net, x = network(), images(2)
    wrapped = konkyo.sess("grad_cam", scales=2)
    both = konkyo.explain(net, x, method=wrapped, target=konkyo.Each(1, 4))
    for row, (image, label) in enumerate([(0, 1), (0, 4), (1, 1), (1, 4)]):
        close(both.maps[row], konkyo.explain(net, x[image : image + 1], method=wrapped, target=label).maps[0])
    with pytest.raises(konkyo.NotApplicable, match="probability of a class"):
        konkyo.explain(net, x, method=wrapped, target=lambda output: output[:, 0])
    for wrong in ({"scales": 0}, {"ratio": 0.0}, {"drop": 1.0}):
        with pytest.raises(konkyo.KonkyoError, match="sess"):
            konkyo.sess("grad_cam", **wrong)  # type: ignore[arg-type]
    assert konkyo.explain(net, x, method="sess(grad_cam)", target=1).method == "sess(grad_cam)"


# --- CAMERAS -------------------------------------------------------------------------------------------------------


def by_hand(net: Any, image: Tensor, label: int, scales: tuple[float, ...]) -> tuple[Tensor, int]:
    decided, size = int(net(image).argmax()), tuple(image.shape[2:])
    A, G = list[Tensor](), list[Tensor]()
    for scale in scales:
        sides = tuple(round(side * scale) for side in size)
        other = image if scale == 1 else functional.interpolate(image, sides, mode="bicubic")
        if int(net(other).argmax()) != decided:
            continue
        x = net.stage2(net.stage1(net.stem(other)))
        a = net.stage3(x).detach().requires_grad_()
        (g,) = torch.autograd.grad(net.head(a.mean((2, 3)))[0, label], a)
        A.append(functional.interpolate(a.detach(), size, mode="bilinear")[0])
        G.append(functional.interpolate(g, size, mode="bilinear")[0])
    return (sum(A) / len(A) * (sum(G) / len(G))).sum(0), len(A)


def test_cameras_size_by_size() -> None:
    net, x, scales = network(2), images(4), (1.0, 1.3, 1.75, 2.5)
    found = konkyo.explain(net, x, method="cameras", target=[0, 1, 0, 1], layer="stage3", scales=scales)
    counts = set()
    for row, label in enumerate([0, 1, 0, 1]):
        expected, count = by_hand(net, x[row : row + 1], label, scales)
        close(found.signed[row], expected)
        counts.add(count)
    assert found.signed.shape[1:] == x.shape[2:]


def test_a_single_size_is_gradient_times_activation_each_enlarged() -> None:
    net, x = network(), images(1)
    found = konkyo.explain(net, x, method="cameras", target=1, layer="stage3", scales=(1.0,))
    close(found.signed[0], by_hand(net, x, 1, (1.0,))[0])


def test_cameras_says_where_it_does_not_apply() -> None:
    x = images(1)
    with pytest.raises(konkyo.NotApplicable, match=r"one grid|one size"):
        konkyo.explain(seeded(Attention()), x, method="cameras", target=1, layer="norm")
    with pytest.raises(konkyo.NotApplicable, match="a class as target"):
        konkyo.explain(network(), x, method="cameras", target=lambda output: output[:, 0])
    for scales in ((), (0.0,), (float("nan"),)):
        with pytest.raises(konkyo.KonkyoError, match="positive numbers"):
            konkyo.explain(network(), x, method="cameras", target=1, scales=scales)

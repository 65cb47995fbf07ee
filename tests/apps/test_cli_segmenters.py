"""Segmenters on the command line: classes, regions, masks, pixels, and what cannot be."""

import numpy as np
import pytest
from PIL import Image

from helpers.commands import Run, runner, told
from konkyo.data.sets.scenes import CLASSES, Scenes

MODEL = ("--model", "konkyo/scenes-segmenter")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """(path of a scene twice as large as the network's input, its objects' class, a mask of its left half)"""
    folder = tmp_path_factory.mktemp("scene")
    drawn = Scenes(5, seed=41, objects=1)[0]
    drawn.image.resize((256, 256)).save(folder / "s.png")
    mask = np.zeros((256, 256), np.uint8)
    mask[:, :128] = 255
    Image.fromarray(mask).save(folder / "m.png")
    return folder / "s.png", CLASSES[int(drawn.labels[0])], folder / "m.png"


@pytest.fixture
def konkyo(tmp_path, monkeypatch, capsys) -> Run:
    return runner("", "", tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("options", "label", "share"),
    [
        ((), "{}", None),
        (("--class", "{}", "--region", "all"), "{}, all of the picture", 1.0),
        (("--mask", "{mask}"), "{}, mask m.png", 0.5),
        (("--class", "{}", "--box", "0,0,256,64"), "{}, box 0,0,256,64", 0.25),
        (("--pixel", "3,5"), "background, pixel 3,5", 1 / 256**2),
        (("--target", "pixel:3:5,label={}"), "{}, pixel 3,5", 1 / 256**2),
        (("--target", "region:{},mask={mask}"), "{}, mask m.png", 0.5),
    ],
)
def test_places(konkyo: Run, scene, tmp_path, options, label, share):
    path, name, mask = scene
    words = [option.replace("{mask}", str(mask)).replace("{}", name) for option in options]
    found = konkyo("explain", str(path), *MODEL, *words, "--out", str(tmp_path), "--json")
    assert found.code == 0, found.err
    (entry,) = found.json["images"][0]["maps"]
    assert entry["label"] == label.replace("{}", name)
    if share is not None:
        assert entry["region"] == pytest.approx(share, rel=0.3)
    assert (tmp_path / entry["overlay"]).is_file()


def test_what_cannot_be(konkyo: Run, scene, tmp_path):
    path, name, mask = scene
    other = next(c for c in CLASSES if c != name)
    run = ("explain", str(path), "--out", str(tmp_path))
    nowhere = konkyo(*run, *MODEL, "--class", other)
    assert nowhere.code == 1
    assert f"skipped {path.name}: '{other}' is predicted nowhere" in nowhere.err.replace("\n", " ")
    assert "background" in nowhere.err
    told(konkyo(*run, *MODEL, "--region", "some"), "--region is predicted or all")
    told(konkyo(*run, *MODEL, "--pixel", "4"), "--pixel is x,y")
    assert "x from 0 to 256" in konkyo(*run, *MODEL, "--pixel", "400,4").err
    told(
        konkyo(*run, "--model", "konkyo/scenes-classifier", "--mask", str(mask)),
        "for segmenters only; konkyo/scenes-classifier is a classifier",
    )
    told(konkyo(*run, *MODEL, "--mask", str(tmp_path / "none.png")), "none.png")


NETS = """
import torch
import konkyo
from helpers.segmenters import mask_rcnn, maskformer

NAMES = ("wall", "floor", "car", "lamp", "sky")
PREPROCESS = konkyo.Preprocess(resize=(80, 96), crop=None)

def queries():
    torch.manual_seed(0)
    network = maskformer()
    for part in network.modules():
        if isinstance(part, (torch.nn.Conv2d, torch.nn.Embedding)):
            torch.nn.init.normal_(part.weight)
    return konkyo.Model(network, PREPROCESS, classes=NAMES)

def boxes():
    return konkyo.Model(mask_rcnn(), PREPROCESS, classes=NAMES[:3])
"""


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_instances(konkyo: Run, scene, tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    run = ("explain", str(scene[0]), "--overwrite", "--method", "layer_cam", "--json", "--model")
    asked = ("--target", "instance:car:2", "--target", "instance:lamp,of=mask")
    found = konkyo(*run, f"{tmp_path / 'nets.py'}:queries", *asked)
    assert found.code == 0, found.err
    car, lamp = found.json["images"][0]["maps"]
    assert car["label"].startswith("car, query ")
    assert lamp["label"].endswith(", mask")
    assert 0 < car["region"] < 1
    found = konkyo(*run, f"{tmp_path / 'nets.py'}:boxes", "--of", "mask", "--score", "0.05", "--top", "2")
    assert found.code == 0, found.err
    maps = found.json["images"][0]["maps"]
    assert [entry["label"].endswith(", mask") for entry in maps] == [True, True]
    assert all(0 < entry["region"] < 1 and entry["quantity"] == "mask" for entry in maps)

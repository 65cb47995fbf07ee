"""Names and true labels of explained images: from paths, samples, data sets, and a user's own word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import konkyo
from konkyo import KonkyoError
from konkyo.data import Sample
from konkyo.data.samples import samples
from konkyo.errors import silenced
from konkyo.tasks.decision import Decision

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Brightest(nn.Module):
    """Decides on the channel that is brightest."""

    def forward(self, images: Tensor) -> Tensor:
        return 8 * images.relu().mean((2, 3))


def model(classes: tuple[str, ...] = ("red", "green", "blue")) -> konkyo.Model:
    return konkyo.Model(Brightest(), konkyo.Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3), classes, "colours")


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), COLOURS[colour])


def explained(images: Any, of: konkyo.Model | None = None, **settings: Any) -> konkyo.Explanation:
    with silenced():  # maps of one colour are constant
        return konkyo.explain(of or model(), images, method="input_x_gradient", **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("red/1.png", "blue/1.png"):
        (tmp_path / name).parent.mkdir()
        picture(name.split("/")[0]).save(tmp_path / name)
    return tmp_path


def test_names_of_paths_are_file_names_and_below_a_folder_relative_to_it(folder: Path) -> None:
    assert explained(folder / "red" / "1.png").names == ("1.png",)
    assert explained(folder).names == ("blue/1.png", "red/1.png")
    assert explained([Image.open(folder / "red" / "1.png"), folder]).names == ("1.png", "blue/1.png", "red/1.png")
    assert explained([picture("red"), folder / "red" / "1.png"]).names == ("", "1.png")
    assert explained(picture("red")).names == ()
    assert explained(folder).true_labels == ()  # a path alone says nothing of classes


def test_every_row_of_an_image_has_its_name_and_label() -> None:
    some = [Sample("a", picture("red"), "Red"), Sample("b", picture("blue")), Sample("c", picture("blue"), "green")]
    result = explained(some, target=konkyo.TopK(2))
    assert result.names == ("a", "a", "b", "b", "c", "c")
    assert result.true_labels == ("red", "red", None, None, "green", "green")
    assert result.correct == (True, True, None, None, False, False)
    assert result.of_image(2).names == ("c", "c")
    assert result.of_image(2).correct == (False, False)


def test_rows_keep_what_was_assumed_of_their_images() -> None:
    deep = Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30))
    result = explained([picture("red"), deep, picture("blue")])
    assert result.assumptions[0] == "image 1: 16-bit rescaled from 0..899"
    assert result[1].assumptions[0] == "image 0: 16-bit rescaled from 0..899"
    assert result[[2, 0]].assumptions == result.assumptions[1:]


def test_labels_of_a_data_set_that_are_no_classes_are_told_and_not_known() -> None:
    result = explained([Sample("a", picture("red"), "sunset"), Sample("b", picture("red"), "red")])
    assert result.true_labels == (None, "red")
    assert [said for said in result.assumptions if "sunset" in said]
    assert explained([Sample("a", picture("red"), "sunset")]).true_labels == ()


class Images(Dataset[tuple[Any, int]]):
    """As torchvision's ImageFolder: (image, index), and the names of classes in the order of the alphabet."""

    classes = ("blue", "green", "red")

    def __init__(self, tensors: bool) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = picture(("red", "blue", "green")[index])
        prepared = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        return prepared if self.tensors else image, (2, 0, 0)[index]


def test_a_data_set_of_konkyo_says_names_and_labels(folder: Path) -> None:
    result = explained(samples(f"folder:{folder}"))
    assert result.names == ("blue/1.png", "red/1.png")
    assert result.true_labels == ("blue", "red")
    assert result.correct == (True, True)


def test_data_sets_with_class_names_say_labels_by_name_not_by_index() -> None:
    assert explained(Images(tensors=False)).true_labels == ("red", "blue", "blue")
    result = explained(DataLoader(Images(tensors=True), batch_size=2))
    assert result.true_labels == ("red", "blue", "blue")
    assert result.correct == (True, True, False)


def test_a_user_says_them_as_names_or_indices() -> None:
    pictures = [picture("red"), picture("green"), picture("blue")]
    for labels in (["red", "GREEN", 0], [0, 1, 0], np.array([0, 1, 0]), torch.tensor([0, 1, 0])):
        result = explained(pictures, true_labels=labels)
        assert result.true_labels == ("red", "green", "red")
        assert result.correct == (True, True, False)
    assert explained(pictures, true_labels=[None, 1, None]).correct == (None, True, None)
    nameless = model(())
    assert explained(pictures, nameless, true_labels=[0, 1, 0]).correct == (True, True, False)
    stronger = explained([Sample("a", picture("red"), "red")], true_labels=["blue"])
    assert stronger.true_labels == ("blue",)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["red"], "2 expected, 1 came"),
        (["red", "purple"], "unknown class 'purple'"),
        ([0, 3], "0 to 2"),
        ([0, -1], "0 to 2"),
        ("red", "a list"),
        ([0, True], "got True"),
        ([0, 1.5], "got 1.5"),
    ],
)
def test_what_is_no_list_of_classes_is_refused(labels: Any, words: str) -> None:
    with pytest.raises(KonkyoError, match=words):
        explained([picture("red"), picture("blue")], true_labels=labels)


def test_they_are_saved(tmp_path: Path) -> None:
    result = explained([Sample("a", picture("red"), "blue"), Sample("b", picture("red"))])
    again = konkyo.Explanation.load(result.save(tmp_path / "maps.npz"))
    assert (again.names, again.true_labels, again.correct) == (("a", "b"), ("blue", None), (False, None))


@pytest.mark.parametrize(("probability", "exclusive", "right"), [(0.4, True, True), (0.4, False, False)])
def test_classes_that_do_not_exclude_each_other_are_decided_from_one_half_on(
    probability: float, exclusive: bool, right: bool
) -> None:
    decision = Decision(0, "red", probability, exclusive=exclusive)
    assert decision.is_right("red") is right
    assert decision.is_right("blue") is False
    assert decision.is_right(None) is None

"""The study of gaze consistency: what a folder holds, that it goes on, and that the loss does what it is for."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

import konkyo
from helpers.bits import files, same
from konkyo import KonkyoError
from konkyo.data.sets.lesions import CLASSES, Lesions
from konkyo.data.splits import splits
from konkyo.evaluation.consistency import Consistency, consistency
from konkyo.models import Model
from konkyo.studies.base import classification_scores, open_study
from konkyo.studies.gaze import study as gaze_study
from konkyo.studies.gaze.study import GazeObjective, GazeStudy, train_gaze
from konkyo.training.augmentation import augmented
from konkyo.training.devices import fabric_of, first
from konkyo.training.loop import fit, read_epochs
from konkyo.training.losses.consistency import ConsistencyLoss, LambdaSchedule
from konkyo.training.recipe import Recipe

FABRIC = fabric_of(accelerator="cpu")
SMALL = GazeStudy(
    "lesions:60", (1,), (0.0, 3.0), (0,), 32, start=1, end=2, augment=True, recipe=Recipe(2, 16, 1e-2, seed=9)
)
FILES = {
    "manifest.json",
    "weights.safetensors",
    "checkpoint.pt",
    "epochs.csv",
    "pictures.safetensors",
    *(
        f"test/{n}"
        for n in ("consistency.json", "table.md", "table.tex", "classes.csv", "images.csv", "maps.safetensors")
    ),
}
TRAIN = ("loss", "ce", "gaze", "weight", "accuracy", "used", "skipped", "blank")
VALID = ("loss", "accuracy", "kappa", "L", "rms", "wt", "coverage", "blank")
COLUMNS = ["epoch", "rate", *(f"train_{name}" for name in TRAIN), *(f"valid_{name}" for name in VALID)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of several threads are not always the same."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two levels, two weights, two seeds."""
    folder = tmp_path_factory.mktemp("study")
    train_gaze(replace(SMALL, levels=(1, 2), seeds=(0, 1)), folder, fabric=FABRIC)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is interrupted elsewhere, in one go."""
    folder = tmp_path_factory.mktemp("small")
    train_gaze(SMALL, folder, fabric=FABRIC)
    return folder


def run(folder: Path, number: int = 1, weight: str = "3", seed: int = 0) -> Path:
    return folder / f"level-{number}" / f"lambda_{weight}" / f"seed_{seed}"


# --- what is in the folder --------------------------------------------------------------------------------------------


def test_a_folder_for_every_training(study: Path) -> None:
    runs = [run(study, n, w, s) for n in (1, 2) for w in ("0", "3") for s in (0, 1)]
    assert sorted(study.glob("level-*/*/*")) == sorted(runs)
    for folder in runs:
        assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == FILES
    said = json.loads((study / "study.json").read_text(), parse_constant=pytest.fail)
    assert said["kind"] == "gaze"
    assert (said["data"], said["levels"], said["lambdas"], said["seeds"]) == ("lesions:60", [1, 2], [0, 3], [0, 1])
    assert said["classes"] == list(CLASSES)
    assert (said["distance"], said["start"], said["end"], said["size"]) == ("mse", 1, 2, 32)
    assert said["recipe"]["epochs"] == 2
    assert not {"seed", "workers"} & said["recipe"].keys()
    assert sum(said["sizes"].values()) == 60


def test_the_pictures_are_what_the_network_sees(study: Path) -> None:
    index = json.loads((study / "pictures" / "index.json").read_text())
    parts = splits("lesions:60")
    assert [entry["file"] for entry in index] == [f"{i:03}.png" for i in range(12)]
    assert {name: sum(e["label"] == name for e in index) for name in CLASSES} == dict.fromkeys(CLASSES, 4)
    for entry in index:
        sample = parts.test[parts.test.names.index(entry["name"])]
        assert sample.label == entry["label"]
        with Image.open(study / "pictures" / entry["file"]) as picture:
            assert picture.size == (32, 32)
            grey = np.asarray(picture.convert("L"), dtype=float)
        seen = (SMALL.preprocess(sample.image)[0].numpy() / 2 + 0.5) * 255
        assert np.abs(grey - seen).mean() < 8


def test_the_epochs(study: Path) -> None:
    for number in (1, 2):
        for weight in ("0", "3"):
            rows = read_epochs(run(study, number, weight) / "epochs.csv")
            assert [list(row) for row in rows] == [COLUMNS] * 2
            assert [row["train_weight"] for row in rows] == [0, float(weight)]
            for row in rows:
                total = row["train_ce"] + row["train_weight"] * row["train_gaze"]
                assert row["train_loss"] == pytest.approx(total, rel=1e-4)
                for name in ("train_accuracy", "train_used", "train_blank", "valid_accuracy", "valid_blank"):
                    assert 0 <= row[name] <= 1
                assert row["train_used"] <= row["train_accuracy"] + 1e-6
                assert -1 <= row["valid_kappa"] <= 1
                assert math.isnan(row["valid_L"]) or row["valid_rms"] == pytest.approx(math.sqrt(row["valid_L"]))


def test_trainings_of_a_seed_are_paired(study: Path) -> None:
    """The first epoch has weight 0 for all: what follows is the loss's."""
    for number in (1, 2):
        for seed in (0, 1):
            one, other = (read_epochs(run(study, number, w, seed) / "epochs.csv") for w in ("0", "3"))
            assert same(one[0], other[0])
            assert one[1]["train_loss"] != other[1]["train_loss"]
        seeds = [read_epochs(run(study, number, "0", seed) / "epochs.csv") for seed in (0, 1)]
        assert seeds[0][0]["train_ce"] != seeds[1][0]["train_ce"]


def test_trainings_of_a_seed_begin_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(network: nn.Module, *_: Any, **__: Any) -> None:
        begun.append(network.state_dict())
        raise KeyboardInterrupt

    begun = list[dict[str, Tensor]]()
    monkeypatch.setattr(gaze_study, "fit", first)
    for index, (weight, seed) in enumerate(((0.0, 0), (3.0, 0), (0.0, 1), (3.0, 1))):
        torch.manual_seed(index)  # whatever the caller did before
        with pytest.raises(KeyboardInterrupt):
            train_gaze(replace(SMALL, lambdas=(weight,), seeds=(seed,)), tmp_path, fabric=FABRIC)
    assert same(begun[0], begun[1])
    assert same(begun[2], begun[3])
    assert not same(begun[0], begun[2])


def test_nothing_is_chosen_by_the_test_set(study: Path) -> None:
    parts = splits("lesions:60")
    tested = Consistency.load(run(study) / "test")
    names = [image.name for image in tested.images]
    assert sorted(names) == sorted(parts.test.names)
    assert len(set(parts.train.names) | set(parts.validation.names) | set(names)) == 60
    sizes = json.loads((study / "study.json").read_text())["sizes"]
    assert sizes == {"train": len(parts.train), "validation": len(parts.validation), "test": len(names)}


@pytest.mark.parametrize("number", [1, 2])
def test_the_network_is_the_one_that_was_measured(study: Path, number: int) -> None:
    folder, parts = run(study, number), splits("lesions:60")
    model = konkyo.load(f"trained/{folder}")
    assert model.classes == CLASSES
    measured, again = Consistency.load(folder / "test"), consistency(model, parts.test, layer="gaze", baselines=False)
    assert (measured.value, measured.ratio, measured.accuracy) == pytest.approx(
        (again.value, again.ratio, again.accuracy), nan_ok=True
    )
    valid = consistency(model, parts.validation, layer="gaze", baselines=False, resamples=0, permutations=0)
    last = read_epochs(folder / "epochs.csv")[-1]
    assert (last["valid_L"], last["valid_wt"], last["valid_coverage"]) == pytest.approx(
        (valid.value, valid.ratio, valid.coverage), nan_ok=True
    )
    assert (last["valid_accuracy"], last["valid_kappa"]) == pytest.approx((valid.accuracy, valid.kappa))


@pytest.mark.filterwarnings("ignore::konkyo.errors.KonkyoWarning")  # blank maps of networks that learnt little
def test_the_maps_of_the_pictures(study: Path) -> None:
    folder, parts = run(study, 2), splits("lesions:60")
    index = json.loads((study / "pictures" / "index.json").read_text())
    maps, model = load_file(folder / "pictures.safetensors")["maps"], konkyo.load(f"trained/{folder}")
    assert maps.shape == (12, 4, 4)
    assert maps.dtype == torch.float32
    for found, entry in zip(maps, index, strict=True):
        picture = parts.test[parts.test.names.index(entry["name"])].image
        expected = konkyo.explain(model, picture, target=entry["label"], layer="gaze").maps[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_manifest_says_how(study: Path) -> None:
    said = json.loads((run(study, 2, seed=1) / "manifest.json").read_text())
    assert said["arguments"] == {"number": 2, "classes": 3}
    assert said["trained"]["lambda"] == 3
    assert said["trained"]["seed"] == 1
    assert said["trained"]["epochs"] == 2


# --- going on ---------------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(study: Path) -> None:
    before = files(study)
    times = {p: p.stat().st_mtime_ns for p in study.rglob("level-*/**/*")}
    told = list[tuple[int, int, str]]()
    again = replace(SMALL, levels=(1, 2), seeds=(0, 1))
    train_gaze(again, study, fabric=FABRIC, progress=lambda *now: told.append(now))
    assert {p: p.stat().st_mtime_ns for p in study.rglob("level-*/**/*")} == times
    assert same(files(study), before)
    assert told[-1][:2] == (16, 16)


def test_more_seeds_and_weights_go_on(study: Path, small: Path, tmp_path: Path) -> None:
    train_gaze(replace(SMALL, lambdas=(3.0,)), tmp_path, fabric=FABRIC)
    first = {p: p.stat().st_mtime_ns for p in run(tmp_path).rglob("*")}
    train_gaze(replace(SMALL, lambdas=(0.0, 3.0), seeds=(0, 1)), tmp_path, fabric=FABRIC)
    assert {p: p.stat().st_mtime_ns for p in run(tmp_path).rglob("*")} == first
    for weight in ("0", "3"):
        for seed in (0, 1):
            assert same(files(run(tmp_path, 1, weight, seed)), files(run(study, 1, weight, seed)))
    said = json.loads((tmp_path / "study.json").read_text())
    assert (said["lambdas"], said["seeds"]) == ([3, 0], [0, 1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": "lesions:63"}, "data"),
        ({"size": 24}, "size"),
        ({"distance": "cosine"}, "distance"),
        ({"start": 0}, "start"),
        ({"augment": False}, "augment"),
        ({"split_seed": 1}, "split_seed"),
        ({"recipe": Recipe(2, 16, 1e-2, weight_decay=0.1)}, r"recipe\.weight_decay"),
    ],
    ids=str,
)
def test_another_study_is_refused(small: Path, changes: dict[str, Any], named: str) -> None:
    before = files(small)
    with pytest.raises(
        KonkyoError, match=rf"with other settings: choose another folder. They differ in {named} \(.* there, .* now\)"
    ):
        train_gaze(replace(SMALL, **changes), small, fabric=FABRIC)
    assert same(files(small), before)


def test_how_many_read_pictures_is_no_setting(small: Path) -> None:
    train_gaze(replace(SMALL, recipe=replace(SMALL.recipe, workers=1)), small, fabric=FABRIC)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
def test_an_interrupted_study_ends_with_the_same_bits(small: Path, tmp_path: Path, at: int) -> None:
    calls = list[int]()

    def stop(done: int, total: int, what: str) -> None:
        calls.append(done)
        if len(calls) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_gaze(SMALL, tmp_path, fabric=FABRIC, progress=stop)
    train_gaze(SMALL, tmp_path, fabric=FABRIC)
    assert same(files(tmp_path), files(small))


def test_more_epochs_make_the_longer_study(small: Path, tmp_path: Path) -> None:
    """Trained for two epochs, then for three: the bits of three at once, and a test of these weights."""
    longer = replace(SMALL, recipe=replace(SMALL.recipe, epochs=3))
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    shutil.copytree(small, grown)
    train_gaze(longer, grown, fabric=FABRIC)
    train_gaze(longer, whole, fabric=FABRIC)
    assert same(files(grown), files(whole))
    with pytest.raises(KonkyoError, match=r"recipe\.epochs"):
        train_gaze(SMALL, grown, fabric=FABRIC)
    fixed = replace(SMALL, recipe=replace(SMALL.recipe, schedule="cosine"))
    train_gaze(fixed, tmp_path / "cosine", fabric=FABRIC)
    with pytest.raises(KonkyoError, match="every rate depends on the number of epochs"):
        train_gaze(replace(fixed, recipe=replace(fixed.recipe, epochs=3)), tmp_path / "cosine", fabric=FABRIC)


def test_a_study_that_is_stopped_while_it_saves(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of test/ is there; the rest is still to be written."""
    with monkeypatch.context() as patch:

        def half(found: Consistency, folder: Path) -> None:
            folder.mkdir()
            (folder / "maps.safetensors").write_bytes(b"")
            raise KeyboardInterrupt

        patch.setattr(Consistency, "save", half)
        with pytest.raises(KeyboardInterrupt):
            train_gaze(SMALL, tmp_path, fabric=FABRIC)
    train_gaze(SMALL, tmp_path, fabric=FABRIC)
    assert same(files(tmp_path), files(small))


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_gaze(replace(SMALL, lambdas=(0.0,), recipe=Recipe(1, 16)), tmp_path, fabric=FABRIC)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"levels": ()}, "at least were expected"),
        ({"lambdas": ()}, "at least were expected"),
        ({"seeds": ()}, "at least were expected"),
        ({"levels": (9,)}, "unknown level '9'"),
        ({"lambdas": (0.0, 3.0, 3.0)}, "came twice"),
        ({"lambdas": (1.0000001, 1.0)}, "came twice"),  # they would share a folder
        ({"seeds": (1, 1)}, "came twice"),
        ({"lambdas": (math.nan,)}, "finite weight"),
        ({"start": 5, "end": 4}, "start <= end"),
    ],
    ids=str,
)
def test_studies_that_make_no_sense(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(KonkyoError, match=told):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"distance": "ssim"}, "unknown distance"),
        ({"aim": "mean"}, "unknown aim"),
        ({"mode": "exact"}, "unknown mode"),
        ({"view": "both"}, "unknown view"),
        ({"levels": (3, 2), "mode": "closed_form"}, "closed_form needs global average pooling"),
        ({"data": "lesions:3"}, "every class is to be in train, validation and test"),
        ({"data": "folder:/nowhere"}, "nowhere"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_leaves_no_folder(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """Or the same command without the mistake would be refused: a study with other settings is there."""
    with pytest.raises(KonkyoError, match=told):
        train_gaze(replace(SMALL, **changes), tmp_path / "to", fabric=FABRIC)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("content", ["", "{", "3", "[1]"])
def test_settings_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(KonkyoError, match=r"study\.json cannot be read as the settings of a study"):
        open_study(tmp_path, {"kind": "gaze"})


class Second:
    """What Fabric says in the second of two processes, the first of which has stopped."""

    world_size, global_rank, is_global_zero = 2, 1, False

    def __init__(self, said: str | None) -> None:
        self.said = said

    def broadcast(self, _own: object) -> object:
        return self.said


def test_an_error_of_the_first_process_is_everybodys() -> None:
    """The others would wait for it for ever."""
    with pytest.raises(KonkyoError, match="the first process stopped: OSError: disk full"):  # noqa: SIM117
        with first(Second("OSError: disk full")) as mine:  # type: ignore[arg-type]
            assert not mine
    with first(Second(None)) as mine:  # type: ignore[arg-type]
        assert not mine
    with pytest.raises(ZeroDivisionError), first(FABRIC) as mine:
        _ = 1 / (not mine)


def test_processes_that_cannot_share_a_batch_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KonkyoError, match="a batch of 16 cannot be shared by 3 processes"):
        SMALL.recipe.check(36, 3)
    with pytest.raises(KonkyoError, match="1 images for 2 processes"):
        SMALL.recipe.check(1, 2)


def test_a_weight_has_one_folder_in_every_call() -> None:
    """Folders are named by six digits, so weights have no more of them."""
    assert replace(SMALL, lambdas=(1 / 3,)).lambdas == replace(SMALL, lambdas=(0.3333331,)).lambdas == (0.333333,)


# --- parts ------------------------------------------------------------------------------------------------------------


NORMALISED = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,), (0.5,)))


def picture(width: int = 90, height: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_studys_preprocessing() -> None:
    usual = v2.Compose([v2.Grayscale(), v2.Resize((224, 224)), *NORMALISED])
    prepared = GazeStudy("lesions:60").preprocess(picture())
    assert prepared.shape == (1, 224, 224)
    torch.testing.assert_close(prepared, torch.as_tensor(usual(picture())), rtol=0, atol=1e-6)


def test_the_studys_augmentation() -> None:
    change = v2.RandomHorizontalFlip(), v2.RandomResizedCrop(224, scale=(0.9, 1.0))
    usual = v2.Compose([v2.Grayscale(), *change, *NORMALISED])
    ours, found = augmented(GazeStudy("lesions:60").preprocess), []
    for seed in range(6):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = torch.as_tensor(usual(picture()))
            torch.manual_seed(seed)
            found.append(ours(picture()))
        torch.testing.assert_close(found[-1], expected, rtol=0, atol=1e-6)
    assert not torch.equal(found[0], found[1])


def test_the_objective_is_eq_11() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        images, labels = torch.randn(12, 1, 8, 8), torch.arange(12) % 2
    own, other = (ConsistencyLoss(net, (1, 8, 8), layer="1") for _ in range(2))
    objective = GazeObjective(own, LambdaSchedule(8.0, 2, 6))
    for epoch, weight in ((1, 0.0), (2, 0.0), (3, 2.0), (6, 8.0), (9, 8.0)):
        logits = net(images)
        found = objective(logits, labels, epoch)
        gaze = other(net(images), labels)
        entropy = functional.cross_entropy(logits, labels)
        torch.testing.assert_close(found["loss"], entropy + weight * gaze)
        torch.testing.assert_close(found["gaze"], gaze)
        right = logits.argmax(1) == labels
        assert float(found["accuracy"]) == pytest.approx(float(right.float().mean()))
        assert float(found["used"]) + float(found["blank"]) <= float(found["accuracy"]) + 1e-6
        assert float(found["weight"]) == weight
    assert all(key.startswith("gaze.") for key in objective.state_dict())


def test_how_a_network_decides() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 3, 1], [1, 0, 0], [0, 0, 1.5]])
    labels = torch.tensor([0, 1, 2, 0, 2])
    batches = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    found = classification_scores(nn.Identity(), batches, torch.device("cpu"))
    assert found["accuracy"] == pytest.approx(0.8)
    # rows 2, 1, 2 of 5; columns 2, 2, 1 of 5
    chance = (2 * 2 + 1 * 2 + 2 * 1) / 25
    assert found["kappa"] == pytest.approx((0.8 - chance) / (1 - chance))
    assert found["loss"] == pytest.approx(float(functional.cross_entropy(logits, labels)))


# --- what the loss is for ---------------------------------------------------------------------------------------------


def stages() -> nn.Sequential:
    """As level 2, of 8 to 64 channels; the layer is the last ReLU, with a grid of 6 x 6."""
    layers: list[nn.Module] = []
    for inside, outside in ((1, 8), (8, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3))


def drawn(count: int, seed: int, places: str) -> list[tuple[Tensor, int]]:
    prepare = konkyo.Preprocess(None, None, (0.5,), (0.5,))
    scans = Lesions(count, seed=seed, places=places)
    return [(prepare(scan.image), CLASSES.index(scan.label or "")) for scan in scans]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, float], list[Consistency]]:
    """The consistency on images that were not trained on, of two seeds trained with a weight of the loss."""
    folder, parts = tmp_path_factory.mktemp("lesions"), dict[str, Any]()

    def train(places: str, weight: float) -> list[Consistency]:
        if places not in parts:
            images, labels = zip(*drawn(300, 1, places), strict=True)
            parts[places] = drawn(300, 0, places), [(torch.stack(images), torch.tensor(labels))]
        trained, test = parts[places]
        found = []
        for seed in (0, 1):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                network = stages()
            gaze = ConsistencyLoss(network, (1, 48, 48), layer="14")
            fitted = fit(
                network,
                GazeObjective(gaze, LambdaSchedule(weight, 2, 6)),
                trained,
                Recipe(10, 32, 1e-3, schedule="constant", seed=seed),
                folder / f"{places} {weight:g} {seed}",
                judge=lambda _n, _e: {},
                keep=lambda _n: None,
                fabric=FABRIC,
            )
            gaze.close()
            model = Model(fitted.network)
            found.append(consistency(model, test, layer="14", resamples=0, permutations=0, baselines=False))
        return found

    return train


def test_the_loss_makes_maps_alike_and_a_negative_one_makes_them_differ(
    held_out: Callable[[str, float], list[Consistency]],
) -> None:
    """Means over two paired seeds, on held-out images whose lesions have a place per class."""
    without, alike, differ = (held_out("fixed", weight) for weight in (0.0, 3.0, -1.0))
    usual = fmean(found.value for found in without)
    assert fmean(found.value for found in alike) <= 0.65 * usual
    assert fmean(found.value for found in differ) >= 1.4 * usual
    assert fmean(found.ratio for found in without) < 0.6
    assert fmean(found.accuracy for found in alike) >= fmean(found.accuracy for found in without) - 0.1
    assert all(found.blank == 0 for found in without + alike)


def test_where_classes_have_no_place_maps_have_none(held_out: Callable[[str, float], list[Consistency]]) -> None:
    assert fmean(found.ratio for found in held_out("random", 0.0)) > 0.85


def test_a_loss_that_never_begins_is_refused() -> None:
    """Its networks would be those without it, bit for bit."""
    with pytest.raises(KonkyoError, match="lambda is 0 up to epoch 2, and there are 2 epochs"):
        GazeStudy("lesions:60", start=2, end=10, recipe=Recipe(2))
    GazeStudy("lesions:60", lambdas=(0.0,), start=2, end=10, recipe=Recipe(2))


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    """A study among pictures would be classes of the next."""
    (tmp_path / "normal").mkdir()
    with pytest.raises(KonkyoError, match="holds something else than a study"):
        train_gaze(SMALL, tmp_path, fabric=FABRIC)
    assert [path.name for path in tmp_path.iterdir()] == ["normal"]

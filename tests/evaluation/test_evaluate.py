"""evaluate() on classifiers, and on maps of other tools: the values, and what may be asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.detectors import dense
from helpers.evaluation_inputs import (
    CLASSES,
    SIZE,
    Colours,
    block,
    colours,
    detected,
    equal,
    kept,
    letterboxed,
    pictures,
    thing,
)
from helpers.unregistered import made
from konkyo.data.samples import Annotation, box_of
from konkyo.errors import KonkyoError
from konkyo.evaluation.columns import column
from konkyo.evaluation.evaluate import evaluate
from konkyo.evaluation.plan import Maps
from konkyo.metrics import METRICS, metric, metrics
from konkyo.tasks import ClassificationTask, DetectionTask


def flat(inputs: Tensor) -> Tensor:
    return inputs.sum(1) * 0 + 1


def nowhere(inputs: Tensor) -> Tensor:
    raise konkyo.errors.NotApplicable("there is no place for it")


METRICS_OF_CLASSIFIERS = ["deletion(steps=4)", "insertion(steps=4)", "ebpg@mask", "ebpg@box", "pointing_game", "odi"]


# --- values of classifiers --------------------------------------------------------------------------------------------


def test_values_of_a_classifier_are_those_of_metrics_called_by_hand(model: konkyo.Model) -> None:
    samples, methods = pictures(3), ["grad_cam", "layer_cam"]
    found = evaluate(model, samples, methods, METRICS_OF_CLASSIFIERS, seed=5)
    assert [row.sample for row in found.rows] == ["p0", "p1", "p2"]
    assert found.methods == ("grad_cam", "layer_cam")
    assert set(found.absent.values()) == {0}
    for name in methods:
        by_hand: dict[str, list[float]] = {c: [] for c in METRICS_OF_CLASSIFIERS}
        for i, sample in enumerate(samples):
            images = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)[None] / 255
            label = int(model.module(images).argmax())
            assert label == 0

            def score(variants: Tensor, rows: Tensor, label: int = label) -> Tensor:
                return model.module(variants).softmax(1)[:, label].detach()

            maps = konkyo.explain(model, sample.image, method=name, target=label).maps
            fox, leaf = (t.mask[None] for t in sample.annotations)
            for kind in ("deletion", "insertion"):
                value = METRICS[kind](maps, images=images, score=score, steps=4, seed=5 + i)
                by_hand[f"{kind}(steps=4)"].append(float(value))
            by_hand["ebpg@mask"].append(float(METRICS["ebpg"](maps, masks=fox)))
            by_hand["ebpg@box"].append(float(METRICS["ebpg"](maps, masks=fox)))
            by_hand["pointing_game"].append(float(METRICS["pointing_game"](maps, masks=fox, seed=5 + i)))
            by_hand["odi"].append(float(METRICS["odi"](maps, masks=fox, others=leaf)))
            assert found.rows[i].score == pytest.approx(float(score(images, torch.zeros(1))), rel=1e-5)
        for c, values in by_hand.items():
            equal(found.values(name, column(c).name), values)
        assert found.values(name, "pointing_game@mask").tolist() == [1, 1, 1]
        assert found.values(name, "ebpg@mask").min() > 0.5


def test_rows_of_a_classifier_are_named_by_the_class(model: konkyo.Model) -> None:
    found = evaluate(model, pictures(2), ["grad_cam"], ["ebpg"])
    assert [row.explained for row in found.rows] == ["red_fox", "red_fox"]


def test_a_decision_that_nothing_in_the_picture_bears_out_has_no_place(model: konkyo.Model) -> None:
    right, wrong = pictures(2)
    wrong = replace(wrong, annotations=(thing("blue", (2, 2, 9, 9)),))
    nameless = replace(right, name="nameless", annotations=(Annotation(None, (3, 3, 9, 9), block((3, 3, 9, 9))),))
    found = evaluate(model, [right, wrong, nameless], ["grad_cam"], ["ebpg", "ebpg@evidence", "deletion(steps=4)"])
    assert found.values("grad_cam", "ebpg@mask").isnan().tolist() == [False, True, False]
    assert found.values("grad_cam", "ebpg@evidence").isnan().all()
    assert not found.values("grad_cam", "deletion(steps=4)").isnan().any()
    assert found.cell("grad_cam", "ebpg@mask").count == 2
    assert found.cell("grad_cam", "ebpg@evidence").count == 0


def test_the_label_in_place_of_the_decision(model: konkyo.Model) -> None:
    samples = [replace(s, label="green") for s in pictures(2)]
    found = evaluate(model, samples, ["grad_cam"], ["ebpg", "deletion(steps=4)"], explained="label")
    for i, sample in enumerate(samples):
        result = konkyo.explain(model, sample.image, target="green")
        equal(
            found.values("grad_cam", "ebpg@mask")[i : i + 1],
            METRICS["ebpg"](result.maps, masks=sample.annotations[1].mask[None]),
        )
        images = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)[None] / 255
        assert found.rows[i].score == pytest.approx(model.module(images).softmax(1)[0, 1].item(), rel=1e-5)
    with pytest.raises(KonkyoError, match="p0 has no label"):
        evaluate(model, [replace(samples[0], label=None)], ["grad_cam"], ["ebpg"], explained="label")


def test_what_is_seen_of_a_cropped_picture_is_measured() -> None:
    """Picture and masks are cut alike: the values are those of the cut picture given as it is."""
    cropped = colours(crop=(24, 24))
    cut = (8, 4, 32, 28)
    whole = pictures(2)
    parts = []
    for sample in whole:
        things = tuple(
            Annotation(t.label, box_of(Annotation(mask=m)), m) for t in sample.annotations for m in [t.mask[4:28, 8:32]]
        )
        parts.append(replace(sample, image=sample.image.crop(cut), annotations=things))
    names = ["ebpg", "ebpg@box", "odi", "compactness", "deletion(steps=4,budget=box)"]
    one, other = (evaluate(m, data, ["grad_cam"], names) for m, data in ((cropped, whole), (colours(), parts)))
    for name in names:
        equal(one.values("grad_cam", column(name).name), other.values("grad_cam", column(name).name))


def test_the_model_is_left_as_it_was_also_by_an_error(model: konkyo.Model) -> None:
    network = model.module.train()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    network.head.weight.grad = torch.ones(3, 3)
    state = torch.get_rng_state()

    def broken(inputs: Tensor) -> Tensor:
        torch.rand(3)
        raise RuntimeError("broken")

    try:
        evaluate(model, pictures(1), ["grad_cam", "rise"], ["deletion(steps=4)"], masks=8)
        with pytest.raises(RuntimeError, match="broken"):
            evaluate(model, pictures(1), [made(broken)], ["ebpg"])
        assert network.training
        assert network.head.training
        assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
        assert network.head.weight.grad.tolist() == torch.ones(3, 3).tolist()
        assert network.conv.weight.grad is None
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        network.head.weight.grad = None
        network.eval()


def test_maps_of_all_grids_are_measured_at_the_size_of_the_picture(model: konkyo.Model) -> None:
    samples = pictures(2)
    found = evaluate(model, samples, ["grad_cam"], ["complexity"])
    for i, sample in enumerate(samples):
        maps = konkyo.explain(model, sample.image).at((sample.image.height, sample.image.width))
        equal(found.values("grad_cam", "complexity")[i : i + 1], METRICS["complexity"](maps))


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_options_reach_the_methods_that_have_them(model: konkyo.Model) -> None:
    said = []

    def scaled(inputs: Tensor, *, power: int = 1) -> Tensor:
        said.append(power)
        return inputs.sum(1) ** power

    (sample,) = pictures(1)
    found = evaluate(model, [sample], [made(scaled), "grad_cam"], ["ebpg"], power=3)
    assert said == [3]
    maps = torch.from_numpy(np.array(sample.image)).float().sum(2)[None] ** 3
    equal(found.values("scaled", "ebpg@mask"), METRICS["ebpg"](maps, masks=sample.annotations[0].mask[None]))


@pytest.mark.parametrize("options", [{"powr": 3}, {"explaned": "label"}])
def test_an_option_that_no_method_has_is_refused(model: konkyo.Model, options: dict[str, Any]) -> None:
    with pytest.raises(KonkyoError, match="option"):
        evaluate(model, pictures(1), ["grad_cam", "rise"], ["ebpg"], **options)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": []}, "methods is an empty list"),
        ({"methods": ["grad_cma"]}, "grad_cam"),
        ({"methods": ["grad_cam", "grad_cam"]}, "one name"),
        ({"metrics": ["ebgp"]}, "ebpg"),
        ({"explained": "lable"}, "'decision' or 'label'"),
        ({"limit": 0}, "limit"),
        ({"seed": -1}, "seed"),
        ({"data": "cocoo:DIR"}, "coco"),
        ({"model": None}, "Maps of other tools"),
        ({"model": konkyo.Model(Colours())}, "how to prepare a picture"),
    ],
)
def test_what_cannot_be_measured_is_told(model: konkyo.Model, changes: dict[str, Any], said: str) -> None:
    asked = {"model": model, "data": pictures(1), "methods": ["grad_cam"], "metrics": ["ebpg"]} | changes
    positional = [asked.pop(n) for n in ("model", "data", "methods", "metrics")]
    with pytest.raises(KonkyoError) as told:
        evaluate(*positional, **asked)
    assert said in str(told.value)


def test_a_limit_is_drawn_by_the_seed(model: konkyo.Model) -> None:
    samples = pictures(6)
    names = {}
    for limit, seed in [(2, 0), (4, 0), (4, 0), (4, 1)]:
        found = evaluate(model, samples, ["grad_cam"], ["ebpg"], limit=limit, seed=seed)
        names[limit, seed] = [row.sample for row in found.rows]
        every = dict(
            zip(
                [s.name for s in samples],
                evaluate(model, samples, ["grad_cam"], ["ebpg"]).values("grad_cam", "ebpg@mask").tolist(),
                strict=True,
            )
        )
        assert found.values("grad_cam", "ebpg@mask").tolist() == [every[n] for n in names[limit, seed]]
    assert names[4, 0][:2] == names[2, 0]
    assert names[4, 1] != names[4, 0]


def test_methods_draw_anew_for_every_picture(model: konkyo.Model) -> None:
    """Of one draw for all pictures, an interval by resampling pictures would not hold what another draw does."""
    same = [replace(pictures(1)[0], name=name) for name in "abc"]
    found = evaluate(model, same, ["random_cam", "grad_cam"], ["complexity"], seed=7)
    values = found.values("random_cam", "complexity")
    assert values.unique().numel() == 3
    alone = evaluate(model, same[:1], ["random_cam"], ["complexity"], seed=8)
    assert float(alone.values("random_cam", "complexity")) == float(values[1])
    assert found.values("grad_cam", "complexity").unique().numel() == 1


def test_noise_and_ties_are_equal_for_all_methods_and_differ_between_pictures(
    model: konkyo.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    @metric(better="higher")
    def drawn(maps: Tensor, *, seed: int = 0) -> Tensor:
        """Notes the seed."""
        seeds.append(seed)
        return maps.flatten(1).sum(1)

    try:
        evaluate(model, pictures(3), ["grad_cam", "layer_cam"], ["drawn"], seed=7)
        assert seeds == [7, 7, 8, 8, 9, 9]
        seeds.clear()
        evaluate(model, pictures(2), ["grad_cam"], ["drawn(seed=3)"], seed=7)
        assert seeds == [3, 3]
    finally:
        METRICS.pop("drawn")


def test_equal_maps_of_two_methods_have_equal_values_whatever_is_drawn(model: konkyo.Model) -> None:
    other = made(lambda inputs: inputs.sum(1).round(), name="other")
    one = made(lambda inputs: inputs.sum(1).round(), name="one")
    names = ["deletion(steps=4,substrate=noise)", "pointing_game", "road(steps=2)", "sensitivity_n(samples=8)"]
    found = evaluate(model, pictures(2), [one, other], names)
    for name in names:
        full = column(name).name
        assert torch.equal(found.statistics["one", full].nan_to_num(7), found.statistics["other", full].nan_to_num(7))


def test_a_method_without_a_place_is_told_and_the_others_go_on(model: konkyo.Model, tmp_path: Path) -> None:
    found = evaluate(
        model, pictures(2), [made(nowhere), "grad_cam", "d_rise"], ["ebpg", "deletion(steps=4)"], out=tmp_path
    )
    assert any("nowhere" in note and "no place for it" in note for note in found.notes)
    assert any("d_rise" in note for note in found.notes)
    assert "| nowhere | not applicable | not applicable |" in found.markdown()
    assert found.cell("grad_cam", "ebpg@mask").count == 2
    assert found.best("ebpg@mask") == "grad_cam"


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_blank_maps_are_counted_and_in_no_metric(model: konkyo.Model) -> None:
    def sometimes(inputs: Tensor) -> Tensor:
        return inputs.sum(1) * float(inputs[0, 0, 0, 0] * 255 < limit)

    samples = pictures(3)
    corners = sorted(np.asarray(s.image)[0, 0, 0].item() for s in samples)
    limit = corners[1] + 0.5 if corners[1] < corners[2] else corners[0] + 0.5
    blank = [np.asarray(s.image)[0, 0, 0].item() > limit for s in samples]
    names = ["ebpg", "deletion(steps=4)", "iou", "complexity", "max_box_acc(steps=5)"]
    found = evaluate(model, samples, [made(sometimes), made(flat), "grad_cam"], names)
    assert found.absent == {"sometimes": sum(blank), "flat": 3, "grad_cam": 0}
    for name in map(column, names):
        undefined = found.statistics["sometimes", name.name].isnan().flatten(1) if name.metric.pooled else None
        if undefined is None:
            assert found.values("sometimes", name.name).isnan().tolist() == blank
            assert found.values("flat", name.name).isnan().all()
        else:
            assert undefined.all(1).tolist() == blank
        assert found.cell("grad_cam", name.name).count == 0, "no row is common to all methods"
    table = found.markdown().splitlines()
    assert next(line for line in table if line.startswith("| flat ")).endswith("| 3 |")


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_maps_that_are_no_numbers_are_counted_as_absent(model: konkyo.Model) -> None:
    def broken(inputs: Tensor) -> Tensor:
        return inputs.sum(1) * math.nan

    found = evaluate(model, pictures(2), [made(broken)], ["ebpg", "deletion(steps=4)", "sparseness"])
    for c in found.columns:
        assert found.values("broken", c.name).isnan().all()
    assert found.absent == {"broken": 2}


def test_a_damaged_picture_is_skipped_and_counted(model: konkyo.Model, tmp_path: Path) -> None:
    for i, sample in enumerate(pictures(3)):
        sample.image.save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:500])
    told = []
    found = evaluate(
        model, f"folder:{tmp_path}", ["grad_cam"], ["deletion(steps=4)"], progress=lambda *n: told.append(n)
    )
    assert [row.sample for row in found.rows] == ["0.png", "2.png"]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert any("1 samples skipped" in note and "1.png" in note for note in found.notes)


FEW = {
    **dict.fromkeys(("deletion", "insertion"), "(steps=4)"),
    **dict.fromkeys(("infidelity", "monotonicity", "max_sensitivity", "map_stability"), "(samples=2)"),
    **dict.fromkeys(("sensitivity_n", "faithfulness_correlation"), "(samples=8)"),
    **dict.fromkeys(("px_ap", "max_box_acc", "max_box_acc_v2"), "(steps=9)"),
    "road": "(steps=2)",
}


@pytest.mark.parametrize("name", sorted(metrics()))
def test_every_metric_is_a_column(name: str, model: konkyo.Model) -> None:
    """Of a classifier, and of a detector whose pictures have a border; what is found again has the same values."""
    text = name + FEW.get(name, "")
    letterbox = letterboxed(dense())
    for network, samples, method in (
        (model, pictures(2), "grad_cam"),
        (letterbox, [detected(letterbox, (60, 50))], "odam"),
    ):
        found = evaluate(network, samples, [method], [text])
        assert found.columns == (column(text),)
        statistic = found.statistics[method, column(text).name]
        assert len(statistic) == len(found.rows) > 1
        if name in ("same_object", "separation") and network is model:
            assert statistic.isnan().all(), "pictures have one map each"
        elif name != "same_object":
            assert statistic.isfinite().all()
            assert found.cell(method, column(text).name).count == len(found.rows)


def test_scores_of_classes_that_do_not_exclude_each_other_are_sigmoids(model: konkyo.Model) -> None:
    (sample,) = pictures(1)
    images = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)[None] / 255
    logits = model.module(images)[0].detach()
    (row,) = evaluate(replace(model, multilabel=True), [sample], ["grad_cam"], ["ebpg"]).rows
    assert row.score == pytest.approx(1 / (1 + math.exp(-float(logits.max()))), rel=1e-5)


def test_a_network_of_grey_pictures() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    grey = konkyo.Model(network.eval(), konkyo.Preprocess(None, None, (0.4,), (0.2,)), CLASSES)
    names = ["deletion(steps=4,substrate=noise)", "insertion(steps=4,substrate=black)", "sparseness"]
    found = evaluate(grey, pictures(2), ["grad_cam_elementwise"], names)
    assert all(found.cell("grad_cam_elementwise", name).count == 2 for name in names)


def test_the_default_metrics_are_the_founding_papers(model: konkyo.Model) -> None:
    assert [column(n).name for n in ClassificationTask.columns] == [
        "deletion",
        "insertion",
        "ebpg@mask",
        "pointing_game@mask",
    ]
    assert [column(n).budget for n in DetectionTask.columns[:2]] == ["box", "box"]
    found = evaluate(model, pictures(1), ["grad_cam"])
    assert [c.name for c in found.columns] == list(ClassificationTask.columns)


def test_a_run_of_which_nothing_could_be_read_is_an_error(model: konkyo.Model, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(KonkyoError, match="none of the 1 samples"):
        evaluate(model, f"folder:{tmp_path}", ["grad_cam"], ["deletion(steps=4)"])


# --- maps of other tools ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".npz", ".npy", ".png"])
def test_maps_of_another_tool_are_measured_by_the_same_ruler(model: konkyo.Model, tmp_path: Path, kind: str) -> None:
    samples = pictures(2)
    for sample in samples:  # as konkyo's own method makes them, on its grid; with and without a first axis
        maps = konkyo.explain(model, sample.image).maps.numpy()
        maps = maps[0] * 200 / maps.max() if kind == ".png" else maps if kind == ".npz" else maps[0]
        kept(tmp_path / "peer", sample.name, maps.round() if kind == ".png" else maps, kind)
    names = ["ebpg", "deletion(steps=4)", "coherency", "sparseness"]
    found = evaluate(model, samples, ["grad_cam", Maps(tmp_path / "peer")], names)
    assert found.methods == ("grad_cam", "peer")
    for name in ("ebpg@mask", "deletion(steps=4)", "sparseness"):
        one, other = found.values("grad_cam", name), found.values("peer", name)
        torch.testing.assert_close(one, other, rtol=0, atol=0.02 if kind == ".png" else 1e-9)
    assert "not applicable" in found.markdown().splitlines()[3], "there is no method to ask for coherency"
    assert found.cell("grad_cam", "coherency").count == 2


def test_maps_without_a_model_are_one_per_thing(tmp_path: Path) -> None:
    (sample,) = pictures(1)
    sample = replace(sample, annotations=(*sample.annotations, replace(sample.annotations[0], crowd=True)))
    heat = np.random.default_rng(0).random((2, 16, 20)).astype(np.float32)
    np.savez(tmp_path / "p0.npz", heat)
    found = evaluate(None, [sample], [Maps(tmp_path, "tool")], ["ebpg", "ebpg@box", "pointing_game", "compactness"])
    assert [row.explained for row in found.rows] == ["red fox", "green"]
    large = torch.nn.functional.interpolate(torch.from_numpy(heat)[:, None], SIZE, mode="bilinear")[:, 0]
    low, high = large.flatten(1).amin(1)[:, None, None], large.flatten(1).amax(1)[:, None, None]
    large = (large - low) / (high - low)
    masks = torch.stack([t.mask for t in sample.annotations[:2]])
    equal(found.values("tool", "ebpg@mask"), (large * masks).sum((1, 2)) / large.sum((1, 2)))
    peaks = [divmod(int(m.argmax()), 40) for m in large]
    assert found.values("tool", "pointing_game@mask").tolist() == [
        float(m[p]) for m, p in zip(masks, peaks, strict=True)
    ]
    with pytest.raises(KonkyoError, match="deletion needs a model"):
        evaluate(None, [sample], [Maps(tmp_path)], ["deletion"])


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 8, 8), np.float32), "2 maps"),
        (np.zeros((8, 8), np.float32), "2 maps"),
        (np.zeros((2, 1, 8, 8), np.float32), "2 maps"),
        (np.array(["a", "b"]), "holds no map"),
        (None, "has no map of p0"),
    ],
)
def test_files_that_hold_other_maps_are_refused(tmp_path: Path, array: np.ndarray | None, said: str) -> None:
    if array is not None:
        np.save(tmp_path / "p0.npy", array)
    with pytest.raises(KonkyoError, match=said):
        evaluate(None, pictures(1), [Maps(tmp_path)], ["ebpg"])


def test_damaged_files_and_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p0.npz").write_bytes(b"PK nothing")
    with pytest.raises(KonkyoError, match="holds no map"):
        evaluate(None, pictures(1), [Maps(tmp_path)], ["ebpg"])
    with pytest.raises(KonkyoError, match="is none"):
        Maps(tmp_path / "other")


def test_a_map_is_named_as_its_sample_with_or_without_the_suffix_and_in_its_own_folder(tmp_path: Path) -> None:
    samples = [replace(s, name=n) for s, n in zip(pictures(3), ["a/1.jpg", "b/1.jpg", "2.jpg"], strict=True)]
    maps = np.random.default_rng(0).random((3, 2, 8, 8)).astype(np.float32)
    for name, heat in zip(["a/1.jpg", "b/1", "2"], maps, strict=True):
        kept(tmp_path, name, heat, ".npy")
    found = Maps(tmp_path)
    for sample, heat in zip(samples, maps, strict=True):
        assert torch.equal(found.of(sample.name, 2), torch.from_numpy(heat)), sample.name


def test_two_samples_of_one_name_in_two_folders_do_not_share_a_map(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", np.ones((4, 4), np.float32))
    with pytest.raises(KonkyoError, match=r"no map of a/1\.jpg"):
        Maps(tmp_path).of("a/1.jpg", 1)


def test_columns_that_no_method_has_do_not_stop_the_rest(model: konkyo.Model, tmp_path: Path) -> None:
    for sample in pictures(2):
        kept(tmp_path / "maps", sample.name, np.random.default_rng(0).random((8, 8)), ".npy")
    found = evaluate(model, pictures(2), [Maps(tmp_path / "maps")], ["ebpg", "coherency"], out=tmp_path / "out")
    assert found.cell("maps", "ebpg@mask").count == 2
    assert (tmp_path / "out" / "evaluation.json").is_file()


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # slopes of a linear network are the same everywhere
def test_infidelity_knows_which_maps_hold_the_input(model: konkyo.Model, tmp_path: Path) -> None:
    """Of every method its own kind of map, unless the column says otherwise; maps of other tools hold the input."""

    def slope(inputs: Tensor) -> Tensor:
        return inputs.sum(1)

    samples = pictures(2)
    names = [
        "infidelity(samples=3)",
        "infidelity(samples=3,holds_input=True)",
        "infidelity(samples=3,holds_input=False)",
    ]
    for i in range(2):
        np.save(tmp_path / f"p{i}.npy", np.random.default_rng(i).random((40, 40)))
    methods = ["input_x_gradient", "smooth_grad", replace(made(slope), holds_input=False), Maps(tmp_path)]
    found = evaluate(model, samples, methods, names)
    for method in found.methods:
        either = [found.values(method, name) for name in names]
        holds = method not in ("smooth_grad", "slope")
        torch.testing.assert_close(either[0], either[1 if holds else 2])
        assert not torch.allclose(either[1], either[2])


def test_methods_measured_by_the_logit(model: konkyo.Model) -> None:
    """Completeness is in the units of what is explained, whichever that is."""
    name, options = "completeness_error(relative=False)", {"window": 16, "stride": 16}
    by = {s: evaluate(model, pictures(2), ["occlusion"], [name], score=s, **options) for s in ("logit", "probability")}
    values = {s: found.values("occlusion", name) for s, found in by.items()}
    assert not torch.allclose(values["logit"], values["probability"])
    torch.testing.assert_close(
        values["probability"], evaluate(model, pictures(2), ["occlusion"], [name], **options).values("occlusion", name)
    )


def test_pixels_of_pictures_without_the_object_count_in_a_table(model: konkyo.Model) -> None:
    samples = pictures(3)
    empty = [replace(sample, annotations=()) if i == 1 else sample for i, sample in enumerate(samples)]
    names = ["px_ap(steps=50)", "px_ap(steps=50,empty=skip)"]
    found = evaluate(model, empty, ["edge_map"], names)
    counted, skipped = (found.cell("edge_map", column(name).name) for name in names)
    assert (counted.count, skipped.count) == (3, 2)
    assert counted.value < skipped.value
    undrawn = [replace(s, annotations=tuple(replace(a, mask=None) for a in s.annotations)) for s in samples[:1]]
    found = evaluate(model, [*undrawn, *samples[1:]], ["edge_map"], names[:1])  # there is an object, but no mask of it
    assert found.cell("edge_map", column(names[0]).name).count == 2

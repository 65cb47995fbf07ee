"""Metrics as `torchmetrics.Metric`: shards merge, in this process and between processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor
from torchmetrics import MetricCollection

from konkyo import KonkyoError
from konkyo.metrics.base import METRICS, metric
from konkyo.metrics.logged import MapMetric

SIZE = (12, 17)
CASES: list[tuple[str, dict[str, object]]] = [
    ("ebpg", {}),
    ("vea", {}),
    ("pointing_game", {"tolerance": 2}),
    ("odi", {}),
    ("sparseness", {}),
    ("max_box_acc", {"steps": 16}),
    ("max_box_acc_v2", {"steps": 16}),
    ("px_ap", {"steps": 50}),
]


def data(rows: int = 9) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    maps = torch.rand(rows, *SIZE, generator=random)
    maps[1, 0, 0] = torch.nan
    objects = (torch.rand(rows, *SIZE, generator=random) + maps.nan_to_num() * 0.8).mul(2).int()
    boxes = torch.tensor([[2.0, 1.0, 14.0, 11.0]]).repeat(rows, 1)
    return {"maps": maps, "masks": objects == 2, "others": objects == 1, "boxes": boxes}


def shard(given: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: values[rows] for name, values in given.items()}


def all_at_once(name: str, options: dict[str, object]) -> Tensor:
    return METRICS[name].over(METRICS[name].statistic(**data(), **options))  # type: ignore[arg-type]


@pytest.fixture
def median() -> Iterator[str]:
    """A metric whose value over a data set is not of a mean."""

    @metric(better="neither", pooled=lambda values: values.nanmedian())
    def middle_of_peaks(maps: Tensor) -> Tensor:
        """The median of the maps' largest values."""
        return maps.flatten(1).amax(1)

    yield middle_of_peaks.name
    del METRICS["middle_of_peaks"]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
def test_shards_merge_to_the_value_of_all(name: str, options: dict[str, object]) -> None:
    given, expected = data(), all_at_once(name, options)
    whole, first, second, idle = (MapMetric(name, **options) for _ in range(4))
    whole.update(**given)
    torch.testing.assert_close(whole.compute(), expected)
    assert int(whole.undefined) == 1
    assert int(whole.count) == 8
    first.update(**shard(given, slice(0, 2)))
    first.update(**shard(given, slice(2, 5)))
    second.update(**shard(given, slice(5, None)))
    first.merge_state(second)
    first.merge_state(idle)
    torch.testing.assert_close(first.compute(), expected)
    assert (int(first.undefined), int(first.count)) == (1, 8)
    again = pickle.loads(pickle.dumps(first))
    torch.testing.assert_close(again.compute(), expected)
    torch.testing.assert_close(copy.deepcopy(first).compute(), expected)
    batch = whole(**shard(given, slice(5, None)))  # forward: the batch's value, and all is added
    torch.testing.assert_close(batch, second.compute())
    assert int(whole.count) == 12
    whole.reset()
    assert (int(whole.undefined), int(whole.count)) == (0, 0)
    whole.update(**given)
    torch.testing.assert_close(whole.compute(), expected)


@pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_maps_and_no_defined_maps_are_nan(name: str, options: dict[str, object]) -> None:
    empty = MapMetric(name, **options)
    assert empty.compute().isnan()
    empty.update(**shard(data(), slice(1, 2)))
    assert empty.compute().isnan()
    assert int(empty.undefined) == 1
    empty.update(**shard(data(), slice(0, 0)))
    assert empty.compute().isnan()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_pool_that_is_no_mean_keeps_every_statistic(median: str) -> None:
    first, second = MapMetric(median), MapMetric(median)
    assert first.compute().isnan()
    first.update(torch.tensor([[[1.0]], [[5.0]]]))
    second.update(torch.tensor([[[torch.nan]], [[2.0]]]), masks=torch.ones(2, 1, 1, dtype=torch.bool))
    first.merge_state(second)
    assert first.compute() == 2
    assert int(first.undefined) == 1
    assert first.higher_is_better is None
    first.reset()
    first.update(torch.full((1, 1, 1), 7.0))
    assert first.compute() == 7


def test_in_a_collection_equal_values_of_the_first_batch_do_not_make_one_metric_of_two() -> None:
    both = MetricCollection(
        {
            "exact": MapMetric("pointing_game"),
            "near": MapMetric("pointing_game", tolerance=3),
            "mass": MapMetric("relevance_mass"),
            "boxes": MapMetric("max_box_acc", steps=8),
        }
    )
    heat, mask = torch.zeros(1, *SIZE), torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, 4:6, 4:6], heat[0, 4, 4] = True, 1
    boxes = torch.tensor([[4.0, 4.0, 6.0, 6.0]])
    both.update(heat, masks=mask, boxes=boxes)
    assert {name: v.item() for name, v in both.compute().items()} == {"exact": 1, "near": 1, "mass": 1, "boxes": 0}
    both.update(heat.roll(-2, 1), masks=mask, boxes=boxes)
    values = {name: v.item() for name, v in both.compute().items()}
    assert values == {"exact": 0.5, "near": 1, "mass": 0.5, "boxes": 0}


def test_what_is_wrong_is_said_when_it_is_made() -> None:
    with pytest.raises(KonkyoError, match="did you mean 'ebpg'"):
        MapMetric("ebgp")
    with pytest.raises(KonkyoError, match="tolerance of metric pointing_game is of type float"):
        MapMetric("pointing_game", tolerance="far")
    with pytest.raises(KonkyoError, match="unknown option of metric vea 'steps'"):
        MapMetric("vea", steps=3)
    with pytest.raises(KonkyoError, match="ebpg needs masks"):
        MapMetric("ebpg").update(torch.rand(1, 3, 3))
    assert [MapMetric(n).higher_is_better for n in ("ebpg", "odi")] == [True, False]


def _process(rank: int, folder: str) -> None:
    """One of two processes with a share of the maps each, the second with none of some metrics."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(0, 4) if rank == 0 else slice(4, None)
    values = {}
    for name, options in CASES:
        shared, one_sided = MapMetric(name, **options), MapMetric(name, **options)
        shared.update(**shard(data(), rows))
        if rank == 0:
            one_sided.update(**data())
        else:
            one_sided.update(**shard(data(), slice(0, 0)))
        values[name] = (shared.compute(), one_sided.compute())
    torch.save(values, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_get_the_value_of_all(tmp_path: Path) -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torchmetrics"])  # imported once for both
    torch.multiprocessing.start_processes(_process, (str(tmp_path),), nprocs=2, start_method="forkserver")
    for rank in (0, 1):
        values = torch.load(tmp_path / f"{rank}.pt")
        for name, options in CASES:
            for found in values[name]:
                torch.testing.assert_close(found, all_at_once(name, options))

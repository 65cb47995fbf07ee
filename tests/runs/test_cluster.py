"""The engine on Ray: the same bytes as on one machine, also when actors, nodes and the driver are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.gates import IMAGES, SHARD, drilled, gated, until
from konkyo.data.pieces import Piece
from konkyo.data.samples import chosen
from konkyo.errors import KonkyoError
from konkyo.runs.cluster import Explainer, Pool, Work
from konkyo.runs.job import Job, methods_of
from konkyo.runs.manifest import MANIFEST
from konkyo.runs.records import Records
from konkyo.runs.run import run
from konkyo.runs.shards import FOLDER

pytest.importorskip("pyarrow")
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and processes to their ends
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.timeout(600),
]
METHODS = ("grad_cam", "saliency")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of two CPUs; the second is not the one that tests connect to."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        from ray.cluster_utils import Cluster

        try:
            nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        except Exception as error:  # without a network, shared memory or processes of its own
            pytest.skip(f"Ray does not start here: {error}")
        try:
            yield nodes
        finally:
            nodes.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(gated(folder / "gate")[0], drilled(), folder / "run", methods=METHODS, batch=2, shard=SHARD, workers=0)
    return shards(folder / "run")


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / FOLDER).glob("*.parquet"))}


def on_ray(model: Any, data: Any, out: Path, address: str | None, **options: Any) -> Records:
    given = {"methods": METHODS, "batch": 2, "shard": SHARD, "engine": "ray", "address": address, **options}
    return run(model, data, out, **given)


def require_whole(folder: Path, undisturbed: dict[str, bytes]) -> None:
    """Every image has one row per method, and the bytes are those of a run that nothing disturbed."""
    records = Records.open(folder, verify=True)
    rows = Counter((row["image"], row["method"], row["row"]) for row in records.rows(["image", "method", "row"]))
    assert rows == Counter((name, method, 0) for name in drilled().names for method in METHODS)
    assert records.complete
    assert records.errors == 0
    assert shards(folder) == undisturbed


def in_background(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_room_is_counted_node_by_node() -> None:
    def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
        return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}}

    assert Pool(1, readers=1, gpus=0).places([node(1), node(1)]) == 0  # an actor is on one node
    assert Pool(1, readers=1, gpus=0).places([node(5), node(4), node(8, alive=False)]) == 4
    assert Pool(1, readers=1, gpus=1).places([node(64), node(64, 2), node(3, 4)]) == 3
    with pytest.raises(KonkyoError, match=r"2 actors .* room for 1.*2 CPUs \(1 for the network, 1 for reading\)"):
        Pool(2, readers=1, gpus=0).require([node(2)])
    with pytest.raises(KonkyoError, match=r"room for 0.*1 CPU .* and 1 GPU.*a model on the CPU"):
        Pool(1, readers=0, gpus=1).require([node(16)])
    Pool(2, readers=0, gpus=0).require([node(2)])


def test_an_actor_gives_a_picture_up_over_which_others_died(tmp_path: Path) -> None:
    """Without Ray: three processes die over one picture, the first unnoticed; the fourth goes on."""
    model, _ = gated(tmp_path / "gate")
    (tmp_path / "bad").touch()
    (tmp_path / MANIFEST).touch()
    job, data = Job(model, methods_of(METHODS), batch=2), drilled(tmp_path, deadly=1)
    explainer = object.__new__(Explainer)  # its own way to its work is an object store
    pieces = {0: Piece(0, "0-3", 0, partial(chosen, data, range(SHARD)))}
    explainer.work = Work(job, pieces, tmp_path, "cpu", 1, Path.cwd())
    explainer.turn = threading.Lock()
    for tries in (1, 2, 3):
        actor = multiprocessing.get_context("fork").Process(target=explainer.receipt_of, args=(0, tries))
        actor.start()
        actor.join(60)
        assert actor.exitcode == -signal.SIGKILL
    receipt = explainer.receipt_of(0, 4)
    assert (receipt.images, receipt.errors, receipt.rows) == (SHARD, 1, 2 * (SHARD - 1) + 1)
    assert [path.suffix for path in sorted((tmp_path / FOLDER).iterdir())] == [".json", ".parquet"]


def test_more_actors_than_have_room_are_refused_with_the_numbers(cluster: Any, tmp_path: Path) -> None:
    model, _ = gated(tmp_path / "gate")
    with pytest.raises(KonkyoError, match=r"2 actors were asked for, and there is room for 1.*2 CPUs.*actors=1"):
        on_ray(model, drilled(), tmp_path / "run", cluster.address, actors=2)
    assert shards(tmp_path / "run") == {}


def test_an_actor_that_is_killed_is_replaced(cluster: Any, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    model, gate = gated(tmp_path / "gate")
    killed: list[int] = []

    def kill(state: Any) -> None:
        if state.shards != 1:
            return
        gate.close()
        until(gate.waiting)
        killed.extend(gate.waiting())
        os.kill(killed[0], signal.SIGKILL)
        gate.open()

    on_ray(model, drilled(), tmp_path / "run", cluster.address, progress=kill)
    assert len(killed) == 1
    require_whole(tmp_path / "run", undisturbed)


def test_a_part_that_always_fails_is_named_and_a_deadly_picture_is_a_row(
    cluster: Any, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("konkyo.runs.cluster.TRIES", 2)
    model, _ = gated(tmp_path / "gate")
    (tmp_path / "bad").touch()
    with pytest.raises(KonkyoError) as caught:
        on_ray(model, drilled(tmp_path, raising=9, deadly=18), tmp_path / "run", cluster.address)
    assert "1 of the parts of the data failed 4 times" in str(caught.value)
    assert "images 8-11 (MemoryError: a cosmic ray)" in str(caught.value)
    others = {n: d for n, d in undisturbed.items() if n not in ("shard-000002.parquet", "shard-000004.parquet")}
    assert shards(tmp_path / "run").items() > others.items()
    errors = [row for row in Records.open(tmp_path / "run").rows() if row["error"] is not None]
    assert [row["image"] for row in errors] == [drilled().names[18]]
    assert "died 2 times over it" in errors[0]["error"]


def test_two_nodes_of_which_one_dies(cluster: Any, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    model, gate = gated(tmp_path / "gate")
    other = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    gate.close()
    hosts: list[int] = []

    def kill() -> None:
        until(lambda: len(set(gate.waiting().values())) == 2)
        hosts.extend(set(gate.waiting().values()))
        cluster.remove_node(other, allow_graceful=False)
        gate.open()

    thread = in_background(kill)
    records = on_ray(model, drilled(), tmp_path / "run", cluster.address, actors=2)
    thread.join(timeout=60)
    assert len(hosts) == 2
    assert max(receipt.tries for receipt in records.receipts) > 1
    require_whole(tmp_path / "run", undisturbed)


DRIVER = """
import os, signal, sys
from pathlib import Path
from helpers.gates import drilled, gated, until
from konkyo.runs.run import run

folder, address = Path(sys.argv[1]), sys.argv[2]
model, gate = gated(folder / "gate")

def kill(state):
    if state.shards == 2:
        gate.close()
        until(gate.waiting)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    run(
        model, drilled(), folder / "run", methods=("grad_cam", "saliency"), batch=2, shard=4, engine="ray",
        address=address, progress=kill,
    )
"""


def test_a_driver_that_is_killed_leaves_nobody_at_work_and_goes_on(
    cluster: Any, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path), cluster.address]
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=200, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert 2 <= len(shards(tmp_path / "run")) < IMAGES // SHARD
    model, gate = gated(tmp_path / "gate")
    assert gate.waiting()
    until(lambda: not any(alive(process) for process in gate.waiting()))

    gate.open()
    on_ray(model, drilled(), tmp_path / "run", cluster.address)
    require_whole(tmp_path / "run", undisturbed)


def test_ray_is_started_for_the_run_and_ends_with_it(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KONKYO_DRILL", str(tmp_path))
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        on_ray(gated(tmp_path / "gate")[0], drilled(), tmp_path / "run", None, workers=0)
    assert not ray.is_initialized()
    require_whole(tmp_path / "run", undisturbed)
    until(lambda: processes_with(f"KONKYO_DRILL={tmp_path}") == [])


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def processes_with(variable: str) -> list[int]:
    """Returns the processes that were started with this variable in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found

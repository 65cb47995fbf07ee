"""`--demands PATH`: writes which of the demands on a library of this kind the tests of this run show to be met.

A test is marked `@pytest.mark.demand(number, missing="what is not there yet")`; the first line of its documentation is
the demand, the rest is what konkyo does about it. (Of several tests of one demand, one is documented.)
"""

from __future__ import annotations

import json
import os
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.browser import chromium as chromium
from helpers.demands import NOT_YET, described

collect_ignore_glob = ["*/conftest.py"]
"""They have no doctests, and two modules of one name cannot be collected."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--demands", type=Path, metavar="PATH", help="write what the tests of demands have shown as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "demand(number, missing=None): shows that a demand of users is met")
    if config.getoption("--demands") is not None:
        config.pluginmanager.register(_Demands(config))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seeds every test: networks with random weights are the same whichever tests ran before, on whichever worker."""
    seed = zlib.crc32(item.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would write down the whole stack, for four devices


class _Demands:
    """Collects the results of marked tests; works under xdist, whose workers run them and whose controller writes."""

    def __init__(self, config: pytest.Config) -> None:
        self.path: Path | None = None if hasattr(config, "workerinput") else config.getoption("--demands").absolute()
        self.said: dict[int, dict[str, Any]] = {}
        self.passed: dict[int, dict[str, bool]] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        for marker in item.iter_markers("demand"):
            item.user_properties.append(("demand", described(getattr(item, "function", None), marker)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for _, said in (p for p in report.user_properties if p[0] == "demand"):
            number, test = said["number"], report.nodeid.rpartition("::")[2]
            self.said.setdefault(number, {}).update(said)
            results = self.passed.setdefault(number, {})
            results[test] = results.get(test, True) and report.passed  # of setup, call and teardown; a skip is no pass

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        finished = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if self.path is None or not finished or not self.passed:
            return
        rows = {
            number: {**self.said[number], "tests": sorted(tests), "passed": all(tests.values())}
            for number, tests in self.passed.items()
        }
        for number, (demand, answer) in NOT_YET.items():
            rows[number] = {"demand": demand, "answer": answer, "missing": None, "tests": [], "passed": None}
        for row in rows.values():
            row.pop("number", None)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        text = json.dumps({n: rows[n] for n in sorted(rows)}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(self.path)

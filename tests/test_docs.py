"""The examples of the documentation run as they stand."""

from __future__ import annotations

import json
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, get_args

import pytest

import konkyo
from helpers.examples import code_of, python_of, run_page
from helpers.paths import DOCS, EXAMPLES, ROOT
from konkyo.explanation.diagnosis import Kind

PAGES = [page.relative_to(DOCS).as_posix() for page in sorted(DOCS.rglob("*.md")) if page.parent != DOCS / "ja"]
SMALLER = {
    "diagnose.md": {"scenes:40": "scenes:3", "scenes:20": "scenes:2"},
    "getting_started.md": {"scenes:8,": "scenes:2,"},
    "measuring.md": {"scenes:20": "scenes:1", '"deletion"': '"deletion(steps=4)"'},
    "vqa.md": {"questions:4": "questions:1"},
    "which.md": {"scenes:6": "scenes:2"},
}
"""What is run of pages that take long: the same code on less data."""
NEEDS = {"vlm.md": "transformers", "measuring.md": "pytorch_grad_cam"}
MAY_WARN = {
    *("index.md", "extending.md", "notebook.md", "vqa.md", "segmentation.md", "segments.md", "relevance.md", "vlm.md"),
    *("answers.md", "getting_started.md", "accountability.md"),
    *(page for page in PAGES if page.startswith("cookbook/")),
}
"""Pages whose maps say nothing in places, which they show or do not mind."""


@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)])
def test_the_examples_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from konkyo.data import sets
    from konkyo.data.samples import LAYOUTS
    from konkyo.methods.base import METHODS
    from konkyo.metrics import METRICS
    from konkyo.tasks import TASKS

    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    konkyo.methods()
    konkyo.metrics.metrics()
    for module in iter_modules(sets.__path__, f"{sets.__name__}."):  # each registers itself once
        import_module(module.name)
    registries: list[dict[str, Any]] = [METHODS, METRICS, LAYOUTS, TASKS]
    before = [dict(registry) for registry in registries]
    try:
        with warnings.catch_warnings():
            if page in MAY_WARN:
                warnings.simplefilter("ignore", konkyo.KonkyoWarning)
            run_page(page, SMALLER.get(page, {}))
    finally:
        for registry, entries in zip(registries, before, strict=True):
            registry.clear()
            registry.update(entries)
    assert any(tmp_path.iterdir()) or ".save(" not in python_of(page)


def test_pages_that_take_long_are_made_smaller() -> None:
    for page, replacements in SMALLER.items():
        assert [text for text in replacements if text not in python_of(page)] == []


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(ROOT / "README.md")
    assert {"report.html", "why.png", "why.safetensors"} <= {path.name for path in tmp_path.iterdir()}


JAPANESE = [(ROOT / "README.ja.md", ROOT / "README.md")] + [
    (page, DOCS / page.name) for page in sorted((DOCS / "ja").glob("*.md"))
]


@pytest.mark.parametrize(("page", "original"), JAPANESE, ids=lambda path: path.name)
def test_a_japanese_page_has_the_code_of_its_english_one(page: Path, original: Path) -> None:
    """The English page's code is run, or shown as it is typed; comments aside, the Japanese page has the same."""
    assert code_of(page) == code_of(original)
    assert code_of(page)
    assert len(re.findall("[ぁ-ん]", page.read_text(encoding="utf-8"))) > 300


def test_the_japanese_readme_names_every_method() -> None:
    section = JAPANESE[0][0].read_text(encoding="utf-8").partition("## 手法")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", section)) == set(konkyo.methods())


def test_notebooks_run(tmp_path: Path) -> None:
    """One kernel runs them all, for its start costs more than most cells do; each begins without the others' names."""
    from nbclient import NotebookClient
    from nbformat import read
    from nbformat.v4 import new_code_cell

    sheets = [read(path, as_version=4) for path in sorted((EXAMPLES / "notebooks").glob("*.ipynb"))]
    assert len(sheets) >= 3
    cells = [cell for sheet in sheets for cell in (new_code_cell("%reset -f"), *sheet.cells)]
    assert all(not cell.get("outputs") for cell in cells), "notebooks are kept without outputs"
    sheets[0].cells = cells
    kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    specification = tmp_path / "kernels" / "python3" / "kernel.json"
    specification.parent.mkdir(parents=True)
    specification.write_text(json.dumps(kernel | {"display_name": "Python"}), encoding="utf-8")
    client = NotebookClient(sheets[0], timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.create_kernel_manager().kernel_spec_manager.kernel_dirs = [str(specification.parents[1])]
    client.execute()
    assert max(len(json.dumps(cell.get("outputs", []))) for cell in cells) < 300_000


PAPERS = (DOCS / "papers.md").read_text(encoding="utf-8")


def test_every_method_has_its_paper() -> None:
    section = PAPERS.partition("## Methods")[2].partition("\n## ")[0]
    names = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("|")))
    assert sorted(names) == sorted(konkyo.methods())


def test_every_method_is_advised_on() -> None:
    section = (DOCS / "which.md").read_text(encoding="utf-8").partition("\n## When, and what to know\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", section.partition("\n## ")[0], re.MULTILINE)
    assert sorted(rows) == sorted(konkyo.methods())


def test_every_kind_of_diagnosis_is_explained() -> None:
    section = (DOCS / "layers.md").read_text(encoding="utf-8").partition("\n## What is wrong with this map\n")[2]
    assert set(re.findall(r"^\| `([\w ]+)` \|", section, re.MULTILINE)) == set(get_args(Kind))


def test_links_to_papers_are_whole() -> None:
    links = re.findall(r"\[(arXiv|doi) (\S+)\]\((\S+)\)", PAPERS)
    assert len(links) > 35
    for kind, identifier, address in links:
        home = "https://arxiv.org/abs/" if kind == "arXiv" else "https://doi.org/"
        assert address == home + identifier
        assert re.fullmatch(r"\d{4}\.\d{4,5}" if kind == "arXiv" else r"10\.\d{4,5}/\S+", identifier), identifier


def test_the_citation_is_of_this_version() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == konkyo.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"

"""Recipe, image and workflow say what pyproject.toml says, and the sdist has the files that the README names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import konkyo
from helpers.paths import ROOT

tomllib = pytest.importorskip("tomllib")  # Python 3.11 and later
yaml = pytest.importorskip("yaml")
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}

if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("no checkout", allow_module_level=True)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_recipe_has_the_requirements_and_the_version_of_the_package() -> None:
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["context"]["version"] == konkyo.__version__
    run = dict(entry.split() for entry in recipe["requirements"]["run"])
    wanted = dict(re.fullmatch(r"([\w-]+)(>=[\d.]+)", entry).groups() for entry in project()["project"]["dependencies"])
    assert run == {"python": project()["project"]["requires-python"]} | {
        CONDA.get(name, name): bound for name, bound in wanted.items()
    }
    (command,) = recipe["build"]["python"]["entry_points"]
    assert dict([command.split(" = ")]) == project()["project"]["scripts"]


def test_the_changes_begin_with_this_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changes, re.MULTILINE)[0] == konkyo.__version__


def test_the_image_asks_for_the_oldest_torch_that_the_package_takes() -> None:
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    wanted = [entry for entry in project()["project"]["dependencies"] if entry.startswith("torch") and ">" in entry]
    assert set(re.findall(r'"(torch\w*>=[\d.]+)"', image)) == {w for w in wanted if not w.startswith("torchmetrics")}


def test_the_workflow_runs_what_continuous_integration_runs_here() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    commands = {name: [s.get("run", "") for s in job["steps"]] for name, job in workflow["jobs"].items()}
    assert "bash .ci/run" in commands["suite"]
    lowest = project()["project"]["requires-python"].removeprefix(">=")
    assert workflow["jobs"]["wheel"]["strategy"]["matrix"]["python"][0] == lowest
    used = [word for lines in commands.values() for line in lines for word in line.split()]
    for path in (word for word in used if word.startswith(("tests/", ".ci/"))):
        assert (ROOT / path).exists(), path


def in_the_sdist(path: str) -> bool:
    names = project()["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    return any(Path(f"/{path}").match(name) or f"/{path}".startswith(f"{name}/") for name in names)


@pytest.mark.parametrize("page", ["README.md", "README.ja.md", "CONTRIBUTING.md"])
def test_the_sdist_has_all_files_that_a_page_names(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)#\s]+)", text)
    named = re.findall(r"\b((?:examples|benchmarks|docs|scripts)/[\w/.-]+\.\w+)", text)
    files = {name for name in (*linked, *named) if "://" not in name}
    assert len(files) > 1
    assert [name for name in sorted(files) if not ((ROOT / name).exists() and in_the_sdist(name))] == []
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert in_the_sdist("Makefile")
    assert in_the_sdist(".ci/run")

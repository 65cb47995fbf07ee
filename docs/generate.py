"""Writes the parts of README*.md and docs/*.md that come from the registry and from benchmarks/results.json.

A part stands between `<!-- NAME -->` and `<!-- /NAME -->`. With --check nothing is written, and a part that is out of
date is an error.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections import Counter
from functools import cache
from math import floor, log10
from pathlib import Path
from typing import Any

from griffe import GriffeLoader

import konkyo
from konkyo.engine.probe import NEEDS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
MEASURED = ROOT / "benchmarks" / "results-methods.json"
PICTURES = ROOT / "docs" / "assets" / "methods"


def applies(method: konkyo.Method) -> str:
    """Which networks a method is for."""
    if method.score == "similarity":
        return "detectors"
    if "output" in method.needs:  # it compares a class with others
        return "classifiers with two classes or more"
    anything = "any classifier or detector" + ("" if method.layer == "input" else " with a feature grid")
    return next((where for name in method.needs if (where := NEEDS[name].networks)), anything)


def cost(name: str) -> str:
    """What a method costs: as timed, else as counted."""
    for section in results()["sections"].get("costs", ()):
        row = section["rows"].get(name)
        if row is not None:
            network = section["title"].partition(":")[0]
            memory = "" if row["mb"] is None else f", {rounded(row['mb'])} MB at its peak"
            return f"{rounded(row['wall'])} forwards of {network}{memory}"
    for found in measured_methods().values():
        if name in found["costs"]:
            return f"{forwards(found['costs'][name])} forwards of `{found['model']}`, counted"
    return "as said above; not measured"


def advice() -> dict[str, tuple[str, str]]:
    """What a method is taken for and what to know of it, as docs/which.md has it."""
    text = (ROOT / "docs" / "which.md").read_text(encoding="utf-8")
    section = text.partition("\n## When, and what to know\n")[2].partition("\n## ")[0]
    return {name: (use, know) for name, use, know in re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", section, re.M)}


def needs_table() -> str:
    """A row per need."""
    lines = ["| a parameter named | is | other targets' | costs |", "|---|---|---|---|"]
    for found in NEEDS.values():
        given = found.summary.replace("|", "\\|")
        lines.append(
            f"| `{found.name}{found.signature}` | {given} | {'differs' if found.of_target else 'is the same'} "
            f"| {found.cost} |"
        )
    return "\n".join(lines)


def methods_table() -> str:
    """One line a family."""
    families: dict[str, list[str]] = {}
    for name, method in konkyo.methods().items():
        families.setdefault(method.function.__module__, []).append(name)
    lines = ["| | methods |", "|---|---|"]
    for family, names in families.items():
        title = (sys.modules[family].__doc__ or family).partition("\n")[0].rstrip(".")
        lines.append(f"| {title} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(lines)


def methods_pages() -> str:
    """Every method with its whole documentation, by family."""
    parts = []
    advised = advice()
    families: dict[str, list[tuple[str, konkyo.Method]]] = {}
    for name, method in konkyo.methods().items():
        families.setdefault(method.function.__module__, []).append((name, method))
    for family, members in families.items():
        parts.append("## " + (sys.modules[family].__doc__ or family).partition("\n")[0].rstrip("."))
        for name, method in members:
            first, _, rest = (inspect.getdoc(method.function) or "").partition("\n\n")
            picture = PICTURES / f"{name}.jpg"
            shown = (
                f"![{name} on a scene]({picture.relative_to(ROOT / 'docs').as_posix()})" if picture.is_file() else ""
            )
            needs = ", ".join(NEEDS[n].cost or n for n in method.needs)
            facts = [
                *zip(("take it for", "know"), advised.get(name, ()), strict=False),
                ("needs", needs),
                ("for", applies(method)),
                ("cost", cost(name)),
                ("ends in a ReLU", "yes" if method.rectified else "no"),
            ]
            if method.options:
                facts.append(("options", ", ".join(f"`{o}={p.default!r}`" for o, p in method.options.items())))
            if method.layer:
                facts.append(("default layer", f"`{method.layer}`"))
            if method.score != "logit":
                whose = "detection" if method.score == "similarity" else "class"
                facts.append(("explains", f"the {whose}'s {method.score}, unless a target says otherwise"))
            table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts)])
            blocks = (f"### {name}", " ".join(first.split()), rest, shown or NO_PICTURE, table)
            parts.append("\n\n".join(block for block in blocks if block))
    return "\n\n".join(parts)


NO_PICTURE = "*No picture: none of the networks that ship has what it reads.*"


@cache
def results() -> dict[str, Any]:
    """The benchmark's results."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def rounded(value: float) -> str:
    """A number as far as repeated runs of a benchmark agree on it: one decimal, or two digits above ten."""
    digits = min(1, 1 - floor(log10(value))) if value > 0 else 1
    return f"{round(value, digits):.{max(digits, 0)}f}"


def ratio(row: dict[str, Any], key: str) -> str:
    """A ratio with the quartiles of its rounds, where they are not the same number."""
    low, high = (rounded(v) for v in row.get(f"{key} spread", [row[key]] * 2))
    return rounded(row[key]) + ("" if low == high else f" ({low} to {high})")


def benchmark_summary() -> str:
    """What a reader of the README wants to know first."""
    rows: dict[str, dict[str, Any]] = {}
    for sections in results()["sections"].values():
        for section in sections:
            for name, row in section["rows"].items():
                rows[f"{section['title'].partition(':')[0]} {name}"] = row

    def cell(name: str) -> str:
        row = rows.get(name)
        return "" if row is None else f"{rounded(row['wall'])}x" + (f", {rounded(row['mb'])} MB" if row["mb"] else "")

    lines = ["| | konkyo | pytorch-grad-cam | torch-cam | captum |", "|---|---|---|---|---|"]
    for model in ("resnet18", "resnet50"):
        for label, key in (
            *(("Grad-CAM", "grad_cam"), ("Grad-CAM++", "grad_cam_pp"), ("Layer-CAM", "layer_cam")),
            *(("six gradient CAMs", "six gradient CAMs"), ("Eigen-CAM", "eigen_cam")),
        ):
            peers = [cell(f"{model} {peer} {key}") for peer in ("konkyo", "pytorch-grad-cam", "torch-cam", "captum")]
            lines.append(f"| {model}, {label} | " + " | ".join(peers) + " |")
        ten = [
            cell(f"{model} konkyo grad_cam, top ten classes"),
            cell(f"{model} pytorch-grad-cam grad_cam, ten classes"),
        ]
        lines.append(f"| {model}, Grad-CAM of ten classes | {ten[0]} | {ten[1]} | | |")
    rows_of = (
        ("vit_b_16, Grad-CAM", "vit_b_16", "grad_cam", "grad_cam", ""),
        ("resnet50, FullGrad", "resnet50", "full_grad", "full_grad", ""),
        (
            "resnet18, layer-wise IG at layer3, 50 steps",
            "resnet18",
            "integrated_gradients, layer3",
            "",
            "layer IG, layer3",
        ),
        (
            "resnet50, Grad-CAM of six views, against six forwards",
            "resnet50",
            "augmented(grad_cam)",
            "grad_cam, aug_smooth",
            "",
        ),
    )
    for label, model, ours, pgc, captum in rows_of:
        cells = [
            cell(f"{model} konkyo {ours}"),
            cell(f"{model} pytorch-grad-cam {pgc}"),
            "",
            cell(f"{model} captum {captum}"),
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for layer in ("layer4", "layer3"):
        pair = [cell(f"resnet18 {who} ablation_cam, {layer}") for who in ("konkyo", "pytorch-grad-cam")]
        lines.append(f"| resnet18, Ablation-CAM at {layer} | {pair[0]} | {pair[1]} | | |")
    three = [cell(f"resnet18 {who} score_cam") for who in ("konkyo", "pytorch-grad-cam", "torch-cam")]
    lines.append(f"| resnet18, Score-CAM | {three[0]} | {three[1]} | {three[2]} | |")
    half = cell('resnet18 konkyo score_cam, precision="bf16"')
    lines.append(f"| resnet18, Score-CAM in bf16 | {half} | | | |")
    return "\n".join(lines)


DEFAULTS = "every method with its defaults"


def quality() -> dict[str, dict[str, str]]:
    """How well the maps of each method are measured on the classifier that ships, for the side of its cost."""
    found = measured_methods().get("classifier", {"values": {}})
    return {
        name: {c.partition("(")[0]: "-" if v[0] is None else f"{v[0]:.2f}" for c, v in values.items()}
        for name, values in found["values"].items()
    }


def benchmark_tables() -> str:
    """Every section with every number."""
    found = results()
    machine = found["machine"]

    def measured_on(machine: dict[str, Any]) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        return f"Measured on {machine['device']}, {machine['threads']} threads, with {versions}."

    parts = [measured_on(machine)]
    for sections in found["sections"].values():
        for section in sections:
            parts.append(f"## {section['title']}")
            if section.get("machine", machine) != machine:
                parts.append(measured_on(section["machine"]))
            measured = quality() if section["title"].endswith(DEFAULTS) else {}
            columns = sorted({c for name in section["rows"] for c in measured.get(name, {})})
            head = ["", "wall / forward", "CPU / forward", "peak MB", "rounds", *columns]
            lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
            for name, row in section["rows"].items():
                memory = "" if row["mb"] is None else f"{row['mb']:.0f}"
                cells = [name, ratio(row, "wall"), ratio(row, "cpu"), memory, str(row["rounds"])]
                cells += [measured.get(name, {}).get(c, "") for c in columns]
                lines.append("| " + " | ".join(cells) + " |")
            if "bf16 correlation" in section:
                value = section["bf16 correlation"]
                lines.append(f"\nThe bf16 map correlates with the fp32 map at {value:.4f}.")
            if "note" in section:
                lines.append(f"\n{section['note']}")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def demands_table() -> str:
    """Every demand with its tests and their result, from the run that wrote docs/demands.json."""
    rows = json.loads((ROOT / "docs" / "demands.json").read_text(encoding="utf-8"))
    lines = ["| | demand | what konkyo does | shown by | result |", "|---|---|---|---|---|"]
    for number, row in rows.items():
        cases = Counter(test.partition("[")[0] for test in row["tests"])
        tests = "<br>".join(f"`{test}`" + (f" ({count} cases)" if count > 1 else "") for test, count in cases.items())
        result = {True: "passed", False: "**failed**", None: "not yet"}[row["passed"]]
        if row["passed"] and row["missing"]:
            result += f", in part; not yet: {row['missing']}"
        lines.append(f"| {number} | {row['demand']} | {row['answer']} | {tests} | {result} |")
    return "\n".join(lines)


def metrics_table() -> str:
    """A row per metric."""
    lines = ["| metric | better | what it gives | options |", "|---|---|---|---|"]
    for name, found in sorted(konkyo.metrics.metrics().items()):
        options = ", ".join(f"`{o}={p.default!r}`" for o, p in found.options.items() if o not in ("batch", "seed"))
        given = " ".join(found.description.replace("|", "\\|").removesuffix("-> (R,)").split())
        lines.append(f"| `{name}` | {found.better} | {given} | {options} |")
    return "\n".join(lines)


def metrics_reference() -> str:
    """Every metric's entry in the reference, by family."""
    families: dict[str, list[str]] = {}
    for name, found in sorted(konkyo.metrics.metrics().items()):
        families.setdefault(found.function.__module__, []).append(name)
    parts = []
    for family, names in sorted(families.items()):
        parts.append("## " + first_paragraph(sys.modules[family].__doc__ or family).rstrip("."))
        for name in names:
            shown = f"konkyo.metrics.{name}"
            parts.append(f"::: {family}.{name}\n    options:\n      heading: {shown}\n      toc_label: {shown}")
    return "\n\n".join(parts)


ENTRY = re.compile(r"^::: (\S+)(?:\n    options:\n      heading: (\S+))?", re.MULTILINE)
"""An entry of the reference: the path of its object, and the heading where that is another one."""


def names_tables() -> str:
    """A table per page of the reference: its names, each with the first sentence of its documentation."""
    loader = GriffeLoader(search_paths=[ROOT / "src"])
    loader.load("konkyo")
    loader.resolve_aliases()
    parts = []
    for name in re.findall(r"reference/(?!index)(\w+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")):
        page = ROOT / "docs" / "reference" / name
        text = page.read_text(encoding="utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        lines = [f"## [{title}]({page.name})", "", "| name | |", "|---|---|"]
        for path, heading in ENTRY.findall(text):
            found = loader.modules_collection[path].docstring
            said = first_paragraph(found.value if found else "").replace("|", "\\|")
            lines.append(f"| [`{heading or path}`]({page.name}#{path}) | {said} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def first_paragraph(text: str) -> str:
    """The first paragraph of a documentation, in one line."""
    return " ".join(text.partition("\n\n")[0].split())


KINDS = {"classifier": "classifier", "detector": "detector", "segmenter": "segmenter", "vqa": "VQA"}


@cache
def measured_methods() -> dict[str, Any]:
    """The costs and values of methods on the models that ship; nothing where they have not been measured."""
    return json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}


def papers() -> dict[str, str]:
    """The papers of methods, as docs/papers.md lists them: names to a link with who and when."""
    found = {}
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    for names, citation, link in re.findall(r"^\| (`[^|]+) \| ([^|]+) \|\s*([^|]*?)\s*\|$", text, re.MULTILINE):
        year = re.search(r"(19|20)\d{2}", citation)
        url = re.search(r"\]\(([^)]+)\)", link)
        words = re.split(r",| et al", citation)[0] + (f", {year[0]}" if year else "")
        for name in re.findall(r"`([^`]+)`", names):
            found[name] = f"[{words}]({url[1]})" if url else words
    return found


def costs_table() -> str:
    """A row per method: what it needs, its paper, and what it costs on the models that ship, in forwards."""
    found = measured_methods()
    kinds = [kind for kind in KINDS if kind in found]
    cited = papers()
    lines = [
        "| method | paper | for | " + " | ".join(f"forwards, {KINDS[kind]}" for kind in kinds) + " |",
        "|---" * (3 + len(kinds)) + "|",
    ]
    for name, method in sorted(konkyo.methods().items()):
        cells = [costs_cell(found[kind], name) for kind in kinds]
        lines.append(f"| `{name}` | {cited.get(name, '')} | {applies(method)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def forwards(count: float) -> str:
    """A number of forwards to three digits: 1, 2.33, 851, 5,020."""
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def costs_cell(found: dict[str, Any], name: str) -> str:
    """Forwards, or a dash where a method does not apply; nothing where it was not counted."""
    if name in found["costs"]:
        return forwards(found["costs"][name])
    return "-" if name in found["refused"] else ""


def quality_tables() -> str:
    """A table per model: every measured method, ordered by its second column."""
    parts = []
    for found in measured_methods().values():
        columns = found["columns"]
        lines = [
            f"**`{found['model']}`**, {found['maps']} maps of `{found['data']}`; 95 % intervals by resampling images.",
            "",
            "| method | forwards | " + " | ".join(columns) + " |",
            "|---" * (2 + len(columns)) + "|",
        ]
        better = {c: konkyo.metrics.metrics()[re.split(r"[@(]", c)[0]].better for c in columns}
        sign = {c: -1 if better[c] == "higher" else 1 for c in columns}
        best = {
            c: min((v[c][0] for v in found["values"].values() if v[c][0] is not None), key=lambda x, c=c: sign[c] * x)
            for c in columns
        }

        def order(item: tuple[str, Any], columns: list[str] = columns, sign: dict[str, int] = sign) -> float:
            value = item[1][columns[1]][0]
            return float("inf") if value is None else sign[columns[1]] * value

        for name, values in sorted(found["values"].items(), key=order):
            cells = [quality_cell(values[c], best[c]) for c in columns]
            lines.append(f"| `{name}` | {forwards(found['costs'][name])} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def quality_cell(value: list[float | None], best: float) -> str:
    """A value with its interval, bold where no other is better."""
    mean, low, high = value
    if mean is None:
        return "-"
    text = f"{mean:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")
    return f"**{text}**" if mean == best else text


PARTS = {
    "costs table": costs_table,
    "quality tables": quality_tables,
    "needs table": needs_table,
    "metrics table": metrics_table,
    "metrics reference": metrics_reference,
    "names tables": names_tables,
    "methods table": methods_table,
    "methods": methods_pages,
    "benchmark summary": benchmark_summary,
    "benchmark tables": benchmark_tables,
    "demands table": demands_table,
}


def main() -> None:
    """Rewrites the parts, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page in (*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        new = text
        for name, make in PARTS.items():
            pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
            if pattern.search(new):
                made = make()
                new = pattern.sub(lambda m, made=made: f"{m[1]}{made}\n{m[2]}", new)
        if new != text:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"out of date: {', '.join(map(str, stale))}; run `make docs`")


if __name__ == "__main__":
    main()

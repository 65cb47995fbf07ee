"""The manifest of a run: the file that says what it does, and by which a later run knows whether it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from konkyo.errors import KonkyoError
from konkyo.utils.files import plain, read_json, write_text
from konkyo.utils.ledger import differences, other_settings

MANIFEST = "run.json"
FORM = 1
MERGED = "merged"
"""The data of the runs that were merged, in the manifest of the run that was made of them."""
FREE = ("threads",)
"""Settings that are noted and may differ: how many threads compute can change the last bits."""


def begin(folder: Path, settings: Mapping[str, Any], *, anew: bool, mended: bool = False) -> None:
    """Writes the manifest of a run, or compares it with the one that is there. KonkyoError: it is of another run.

    `anew`: nothing was finished, so the one that is there does not count. `mended`: files of errors may be others now,
    of other sizes, so the listing of the data may differ, and is written anew.
    """
    path = folder / MANIFEST
    if path.exists() and not anew:
        if parts := manifest_of(folder)["data"].get(MERGED):
            raise KonkyoError(
                f"{folder} was merged from {len(parts)} runs and does not go on; run into a folder of its own, and "
                "merge again"
            )
        manifest = manifest_of(folder)
        differ = differences(manifest, {"run": FORM, **settings}, FREE)
        if mended and len(differ) == 1 and differ[0].startswith("data.listing "):
            manifest["data"]["listing"] = settings["data"]["listing"]
            write_text(path, json.dumps(manifest, indent=1) + "\n")
        elif differ:
            changed = any(entry.startswith("data.listing ") for entry in differ)
            why = " (pictures were added, removed or changed)" if changed else ""
            way_out = "choose another folder, or remove this one"
            raise KonkyoError(f"{folder} {other_settings('a run', differ, way_out)}{why}")
        return
    write_text(path, json.dumps({"run": FORM, **plain(dict(settings))}, indent=1) + "\n")


def manifest_of(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a run. KonkyoError: the folder holds none, or one of another form."""
    path = folder / MANIFEST
    if not path.is_file():
        what = "is no folder" if not folder.is_dir() else f"has no {MANIFEST}"
        raise KonkyoError(f"a folder of `konkyo run` was expected; {folder} {what}")
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("data"), dict):
        raise KonkyoError(f"{path} is no manifest of a run")
    if values.get("run") != FORM:
        raise KonkyoError(f"{path} is of form {values.get('run')}; this version of konkyo reads form {FORM}")
    return values

"""Options that all scripts have which train on drawn scenes."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path


def parser_of(
    description: str | None, weights: Path, cache: str, *, seed: int = 0, workers: int = 2
) -> argparse.ArgumentParser:
    """Returns a parser with --out, --cache, --seed, --workers and --resume, to which a script adds its own.

    `weights`: the file that is written without --out; `cache`: the name of the folder for scenes and checkpoint.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=weights, help="the safetensors to write; the provenance goes beside it"
    )
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / cache, help="scenes and checkpoint")
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--workers", type=int, default=workers, help="processes that render")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in the cache folder")
    return parser

"""The library that reads and writes Parquet."""

from __future__ import annotations

from typing import Any

from konkyo.errors import KonkyoError, install_hint


def arrow(what: str = "shards are") -> Any:
    """Returns pyarrow. KonkyoError: it is not installed. `what`: what is in tables of Parquet, for the error."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise KonkyoError(f"{what} tables of Parquet, which pyarrow reads and writes: {install_hint('run')}") from error
    return pyarrow

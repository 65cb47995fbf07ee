"""Tables of pandas, which is not needed for anything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from konkyo.errors import KonkyoError

if TYPE_CHECKING:
    import pandas


def data_frame(columns: Mapping[str, Sequence[Any]]) -> pandas.DataFrame:
    """Returns columns by name as a table of pandas. KonkyoError: it is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise KonkyoError("to_frame() makes a table of pandas, which is not installed: pip install pandas") from error
    return pandas.DataFrame({name: pandas.Series(list(values)) for name, values in columns.items()})

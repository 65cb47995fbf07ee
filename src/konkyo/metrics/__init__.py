"""How good a map is: every metric is a pure function of maps and of what is true of their images.

`konkyo.metrics.NAME(maps, ...)` gives the value of every map; `konkyo.metrics.metrics()` lists them.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from konkyo.metrics.base import METRICS, Metric, metric, metrics

_LOGGED = "logged"
"""The module whose library, torchmetrics, takes seconds to import; it defines no metric."""

for _module in iter_modules(__path__):
    if _module.name != _LOGGED:
        import_module(f"{__name__}.{_module.name}")

__all__ = ["METRICS", "Metric", "metric", "metrics"]


def __getattr__(name: str) -> Metric:
    if name == _LOGGED:
        module: Any = import_module(f"{__name__}.{_LOGGED}")
        return module  # type: ignore[no-any-return]
    if name not in METRICS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return METRICS[name]

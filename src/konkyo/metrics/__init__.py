"""How good a map is: every metric is a pure function of maps and of what is true of their images."""

from konkyo.metrics.base import METRICS, Metric, metric, metrics

__all__ = ["METRICS", "Metric", "metric", "metrics"]

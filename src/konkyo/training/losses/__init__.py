"""Losses on maps."""

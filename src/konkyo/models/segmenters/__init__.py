"""Segmenters: who knows those of a library, and what their output is."""

"""Targets: which number of an output is explained."""

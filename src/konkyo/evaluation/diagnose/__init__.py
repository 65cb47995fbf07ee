"""Diagnosis of a model on a user's own data: what it rests on, why it is wrong, and which images to look at."""

from __future__ import annotations

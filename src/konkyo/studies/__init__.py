"""The experiments of the founding papers."""

"""Data sets by name, a module each."""

"""How good maps are: evaluate, consistency and sanity checks."""

"""From a request to maps: explain, compare, and what they give."""

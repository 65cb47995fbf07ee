"""Training models to look at the right place: losses on maps, heads whose maps are better, and the studies of both."""

"""Images in, data sets with ground truth."""

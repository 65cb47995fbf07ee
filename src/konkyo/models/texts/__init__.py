"""Models of images and texts: what turns them into classifiers whose classes are texts."""

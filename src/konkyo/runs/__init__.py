"""Maps, numbers and findings of any number of images, in shards that a later run adds to."""

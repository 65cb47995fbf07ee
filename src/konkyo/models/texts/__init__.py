"""Networks that read images and text, and answer in words: a file per architecture."""

"""Networks that read images and text: an answer in words, or classes that are texts. A file per architecture."""

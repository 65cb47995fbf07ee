"""The web page: a model and a picture are chosen in a browser, which shows what konkyo says of them."""

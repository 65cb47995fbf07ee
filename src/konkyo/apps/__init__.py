"""Ways to use the library without writing Python."""

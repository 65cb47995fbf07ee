"""Networks of videos and of sound, by library."""

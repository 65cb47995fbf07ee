"""The parts of the page, a file each: what it shows of a session, as pure functions, and its controls."""

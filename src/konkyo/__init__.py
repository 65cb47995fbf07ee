"""konkyo: what in an image a vision model decided on."""

__version__ = "0.1.0"

"""Pictures of results; reads maps and images, never models."""

"""The study of the information bottleneck: its trainings and its report."""

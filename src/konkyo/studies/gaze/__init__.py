"""The study of gaze consistency: its trainings, its report and its figures."""

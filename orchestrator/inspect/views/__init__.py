"""Views of a run for people: progress, status, samples, the report."""

"""Models that are asked by the name of their role."""

"""Training examples: their kinds, and how they are built from judged trajectories."""

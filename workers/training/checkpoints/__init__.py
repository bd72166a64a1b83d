"""Weights and optimizer state on disk: checkpoints, candidates, and what they must pass."""

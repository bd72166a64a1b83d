"""Judging trajectories: verifiers, judges, aggregation and the workers that run them."""

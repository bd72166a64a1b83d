"""Verifying trajectories: verifiers, the processes that they run in, and the worker that holds them."""

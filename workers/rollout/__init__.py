"""Sampling: engines, strategies and the worker that runs them."""

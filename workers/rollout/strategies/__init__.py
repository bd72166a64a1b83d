"""Rollout strategies, one file each."""

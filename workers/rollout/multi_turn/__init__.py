"""Trajectories of several turns: a policy and whoever answers it."""

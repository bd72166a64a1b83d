"""Objectives: losses and references as pure functions, and the one routine that computes log-probs."""

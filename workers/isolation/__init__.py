"""Processes of our own for other people's code."""

"""Proves a run whole from its files alone: `pawl verify`."""

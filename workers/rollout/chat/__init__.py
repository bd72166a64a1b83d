"""Conversations as a model's own template writes them, and as exact token ids."""

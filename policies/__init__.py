"""Policies and what they learn from: records, losses, preference builders, references, store."""

"""A copy of the run in object storage, and going on from it."""

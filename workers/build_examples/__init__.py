"""Training examples of a shard, from scored attempts."""

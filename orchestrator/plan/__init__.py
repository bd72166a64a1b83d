"""The preflight: what a config would run, whether it fits, what it would write. Starts nothing."""

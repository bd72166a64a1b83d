"""`pawl doctor`: what is wrong with a run, a config or this machine."""

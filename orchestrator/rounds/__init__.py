"""The rounds of a run: the loop, its phases, and their tasks."""

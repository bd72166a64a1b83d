"""The rounds of a run: the loop, its phases, and the pipeline of shards."""

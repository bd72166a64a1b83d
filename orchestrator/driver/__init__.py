"""The driver of a run: starting and resuming, wiring, worker groups, the supervisor."""

"""MLflow behind a spool: the driver never waits for it."""

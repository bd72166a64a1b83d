"""Judging by models: judges, the backends that answer them, and the worker that runs both."""

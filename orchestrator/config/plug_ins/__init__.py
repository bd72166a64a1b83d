"""Plug-ins outside of the driver: the process that imports them, and what the driver asks it."""

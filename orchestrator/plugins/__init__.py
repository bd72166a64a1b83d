"""Plug-ins behind a process of their own: imported, asked and tried there, so that the driver never runs them."""

"""Plug-ins: the files that one is made of, and stand-ins for its class in a process that never imports it."""

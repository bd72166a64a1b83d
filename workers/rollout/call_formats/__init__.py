"""Formats in which a policy calls tools, one file each."""

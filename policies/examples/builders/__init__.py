"""Preference builders, one file each."""

"""Judges, one file each, with their prompts as text files beside them."""

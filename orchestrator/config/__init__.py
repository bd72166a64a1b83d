"""Configs: their sections, how files become them, and how mistakes in them are said."""

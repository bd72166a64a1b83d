"""Containment of model-written code."""

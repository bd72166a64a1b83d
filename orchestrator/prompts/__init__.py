"""Prompt sources and the draw of a round."""

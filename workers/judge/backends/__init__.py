"""Backends that answer a judge's questions: an engine of ours or an OpenAI-compatible endpoint, one file each."""

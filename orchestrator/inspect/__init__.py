"""Looking at a run from its files: views of it, `pawl doctor`, and the audit."""

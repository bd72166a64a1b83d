"""The foundation: components, errors, records, seeds, redaction. Imports nothing of ours but itself."""

"""From examples to batches with reference log-probs."""

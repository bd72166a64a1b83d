"""Policy updates: the training worker and its engines."""

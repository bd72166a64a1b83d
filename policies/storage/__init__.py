"""Files of a run: artifacts with markers, published policies, durable writes, bounded reads."""

"""What a policy is and what it learns from: records, losses, preference builders, references, store."""

"""Whether a round's new policy is kept."""

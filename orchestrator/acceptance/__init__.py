"""Acceptance: keep a round's new policy, or roll back."""

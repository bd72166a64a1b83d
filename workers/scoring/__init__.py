"""From verdicts to feedback: what attempts are worth, and the parts of them that are graded."""

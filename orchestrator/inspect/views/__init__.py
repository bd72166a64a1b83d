"""What people see of a run: progress, status, samples, the report."""

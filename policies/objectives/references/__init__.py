"""Reference schedules, one file each."""

"""The seam to where workers run: groups and calls, in this process or on Ray, and what a worker process needs."""

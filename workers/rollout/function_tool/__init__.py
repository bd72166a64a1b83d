"""A user's plain function as a tool: its signature and the process that it runs in."""

"""The `pawl` command: `main.py` names its commands, a file each kind."""

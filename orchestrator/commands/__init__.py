"""The commands of `pawl`, a file each kind; `orchestrator/cli.py` names them."""

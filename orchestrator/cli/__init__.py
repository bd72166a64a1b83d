"""The `pawl` command: `app.py` names its commands, a file each kind."""


def main() -> None:
    """Run the command: where the installed script and `python -m orchestrator.cli` begin."""
    from orchestrator.cli.app import main as run_command

    run_command()

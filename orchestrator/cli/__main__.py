"""The program `python -m orchestrator.cli`: the same as `pawl`."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()

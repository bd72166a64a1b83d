"""Prints what became of every attack, by backend, at the end of a test run that had the battery in it."""

from __future__ import annotations

import pytest

from tests.attacks.endings import ENDINGS, LEGEND, table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Called by pytest after the last test."""
    if ENDINGS:
        terminalreporter.section("attacks on the sandbox: what held each")
        terminalreporter.write_line(LEGEND)
        for line in table(ENDINGS):
            terminalreporter.write_line(line)

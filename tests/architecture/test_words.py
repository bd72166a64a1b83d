"""Words of code, tests and docs: the field's own; none that only an image in somebody's head explains."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = (
    "ferry|ferries|dock|docks|crossing|heal|heals|guilty|guilt|mend_\\w+|\\w+_mending|mending_\\w+|epitaph|portion_of|"
    "made_from|deadly|dying|zygote|arena|trial_of_items"
)
"""Images that plain words replaced: TransferClient, TransferEndpoint, repair, poison, input digests, crashing."""
STORED = {
    "fickle": {
        "CHANGELOG.md",
        "docs/decisions.md",
        "orchestrator/rounds/metrics.py",
        "orchestrator/rounds/source_counts.py",
        "workers/verify/worker.py",
    }
}
"""Words that files of older runs hold as keys, and the places that write or read them."""


def tracked(*endings: str) -> list[Path]:
    """Files of the repository with one of the endings."""
    listed = subprocess.run(
        ["git", "ls-files", *(f"*{e}" for e in endings)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [ROOT / name for name in listed.split() if (ROOT / name).is_file()]


def lines_with(pattern: str) -> list[str]:
    """Places of a word, this file left out."""
    word = re.compile(rf"(?<![A-Za-z_])(?:{pattern})(?![A-Za-z_])", re.IGNORECASE)
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked(".py", ".md", ".yaml")
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if word.search(line)
    ]


def test_no_private_image_is_left() -> None:
    assert lines_with(IMAGES) == []


@pytest.mark.parametrize("word", STORED)
def test_a_word_of_older_runs_stands_only_where_their_files_are_read(word: str) -> None:
    places = {line.rpartition(":")[0] for line in lines_with(rf"\w*{word}\w*")}
    assert {p for p in places if not p.startswith("tests/")} == STORED[word]

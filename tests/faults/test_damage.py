"""Nobody is fooled by a damaged file: a sample of what `scripts/damage` plays by the hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.inspect.audit.run import audit
from tests.faults.damage import KINDS, Damage, Ground, choose, play
from tests.faults.damaged_runs import judged


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """One run that was cut off between an update and its publishing."""
    ground = Ground(tmp_path_factory.mktemp("damage"))
    ground.prepare(["trained"])
    return ground


def test_random_damage_is_noticed_by_verify_and_used_by_no_command(ground: Ground) -> None:
    wrong, kinds = [], set()
    for damage in choose(ground, 14, seed=2):
        found = play(ground, damage, ground.home)
        kinds |= {damage.kind} if found is not None else set()
        wrong += [f"{damage}: {sentence}" for sentence in found or ()]
    assert wrong == []
    assert len(kinds) > 3, kinds


def test_new_weights_that_were_damaged_before_they_were_published_are_trained_again(
    ground: Ground,
) -> None:
    for name in ("model.safetensors", "fake_policy.json"):
        damage = Damage("trained", "flip", f"rounds/0001/train/candidate/{name}", seed=3)
        assert play(ground, damage, ground.home) == [], name
        assert damage.seed % 3 == 0, "it was resumed"


def test_a_file_of_nobody_is_a_note_and_changes_nothing(ground: Ground) -> None:
    assert "foreign" in KINDS
    for seed, name in enumerate(("notes.txt", "epochs/notes.json", "policies/0000/README.md")):
        damage = Damage("trained", "foreign", name, seed=10 * seed + 1)
        assert play(ground, damage, ground.home) == [], name


def test_replies_of_judges_and_lines_for_tracking_that_were_lost_are_a_note(tmp_path: Path) -> None:
    folder = judged(tmp_path, 1)

    def notes() -> str:
        report = audit(folder)
        assert not [problem for check in report for problem in check.problems]
        return "; ".join(note for check in report for note in check.notes)

    assert "repl" not in notes()
    assert "spool" not in notes()
    (replies,) = folder.judge_cache.glob("worker-*.jsonl")
    replies.write_bytes(b"")
    assert "its replies are asked for again" in notes()
    replies.unlink()
    assert "holds no reply" in notes()
    (folder.tracking / "spool.jsonl").write_bytes(b"")
    assert "shorter than what was sent of it" in notes()

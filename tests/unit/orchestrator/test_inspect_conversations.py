"""`pawl show` and `pawl trace` tell whole conversations, steps included, and their text cannot pass for a label."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.report import write_report
from orchestrator.runs.tables import sample_rows
from policies.base.records import (
    Branch,
    Feedback,
    Message,
    Span,
    Step,
    StepScore,
    Trajectory,
    Verdict,
    VerdictStatus,
)
from policies.examples.kinds import SupervisedExample, TokenSequence
from policies.storage.artifacts import canonical_json, read_records, write_records
from tests.support.run_folders import make_run

FORGED = "\npolicy 9 (graded):\x1b[2J"


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "q-1", rounds=1, tool_use=True, extra_text=FORGED)


def labels(text: str, indent: str) -> list[str]:
    """Lines with exactly this indentation."""
    return [
        line.strip()
        for line in text.splitlines()
        if line.startswith(indent) and line[len(indent)] != " "
    ]


def test_show_tells_every_turn_with_its_author_calls_and_ending(folder: RunFolder) -> None:
    out = invoke("show", folder.path, "--round", 1, "--trajectories", "--limit", 2)
    assert labels(out, "  ") == [
        *("policy 1:", "observation (python ok):", "policy 2:", "ended: answered, outcome 1"),
        *("policy 1 (graded):", "observation (python failed):", "policy 2:"),
        "ended: turn_limit, outcome 0.25",
    ]
    assert "\x1b" not in out
    assert "    policy 9 (graded):" in out


def test_show_as_json_has_calls_endings_and_the_graded_span(folder: RunFolder) -> None:
    rows = json.loads(
        invoke("show", folder.path, "--round", 1, "--trajectories", "--limit", 2, "--json")
    )
    assert [t["role"] for t in rows[1]["turns"]] == ["policy", "observation", "policy"]
    assert rows[1]["turns"][1]["calls"] == [{"tool": "python", "status": "failed"}]
    assert (rows[1]["ending"], rows[1]["outcome"]) == ("turn_limit", 0.25)
    assert rows[1]["graded"] == {"turn": 0, "start": 0, "end": 3}


def test_pairs_are_shown_as_conversations(folder: RunFolder) -> None:
    out = invoke("show", folder.path, "--round", 1, "--pairs", "--limit", 1)
    assert out.count("    observation (python") == 2
    assert labels(out, "    ")[:2] == ["policy 1:", "observation (python ok):"]
    (pair,) = json.loads(
        invoke("show", folder.path, "--round", 1, "--pairs", "--limit", 1, "--json")
    )
    assert len(pair["rejected"]["turns"]) == 3
    assert "policy_version" not in pair["chosen"]


def test_every_round_shows_the_kind_of_examples_that_it_holds(folder: RunFolder) -> None:
    """A supervised stage comes before the preference stage that the config names."""
    shard = folder.round(1).shard(0)
    trajectory = read_records(shard.of("trajectories"), Trajectory)[0]
    example = SupervisedExample(
        id=trajectory.id, prompt_id=trajectory.prompt_id, sequence=TokenSequence.of(trajectory)
    )
    write_records(shard.of("examples"), SupervisedExample, [example])
    assert "completion r1.2x3.0:" in invoke("show", folder.path, "--round", 1, "--pairs")
    assert "SupervisedExample r1.2x3.0" in invoke("trace", folder.path, trajectory.id)


def test_a_trace_shows_steps_with_their_scores_and_where_a_branch_left_its_trunk(
    folder: RunFolder,
) -> None:
    shard = folder.round(1).shard(0)
    trajectories = read_records(shard.of("trajectories"), Trajectory)
    first = trajectories[0]
    steps = (Step(start=0, end=2, text="Let me\n"), Step(start=2, end=3, text="compute."))
    turn = first.turns[0].model_copy(update={"steps": steps})
    trajectories[0] = first.model_copy(
        update={"turns": (turn, *first.turns[1:]), "branch": Branch(parent="r1.2x3.1", at_token=3)}
    )
    write_records(shard.of("trajectories"), Trajectory, trajectories)
    span = Span(turn=0, start=0, end=2)
    verdict = Verdict(
        source="steps",
        trajectory_id=first.id,
        status=VerdictStatus.SCORED,
        score=0.25,
        span=span,
    )
    score = StepScore(span=span, score=0.25, desirable=False)
    feedback = Feedback(
        trajectory_id=first.id, score=1.0, desirable=True, verdicts=(verdict,), steps=(score,)
    )
    write_records(shard.of("feedback"), Feedback, [feedback])
    write_records(shard.of("verdicts"), Verdict, [verdict])
    out = invoke("trace", folder.path, first.id)
    assert "    step, tokens 0 to 2, score 0.25:\n        Let me\n" in out
    assert "    step, tokens 2 to 3, not scored:\n        compute.\n" in out
    assert "steps on turn 0, tokens 0 to 2: score 0.25" in out
    assert "branched from r1.2x3.1 at token 3" in out
    shown = invoke("show", folder.path, "--round", 1, "--feedback")
    assert "steps: 0 of 1 right" in shown


@pytest.fixture(params=[False, True], ids=["one-turn", "conversation"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    """A run in which the partner spoke first, e.g. the environment of an episode."""
    folder = make_run(tmp_path / "q-2", rounds=1, tool_use=request.param)
    opening = (Message(role="user", content=f"Seven stones lie here.{FORGED}"),)
    path = folder.round(1).shard(0).of("trajectories")
    trajectories = [
        t.model_copy(update={"opening": opening}) for t in read_records(path, Trajectory)
    ]
    write_records(path, Trajectory, trajectories)
    return folder


def test_every_view_shows_what_the_partner_began_with(opened: RunFolder) -> None:
    shown = invoke("show", opened.path, "--round", 1, "--trajectories", "--limit", 1)
    assert labels(shown, "  ")[:2] == ["opening:", "policy 1:"]
    pairs = invoke("show", opened.path, "--round", 1, "--pairs", "--limit", 1)
    traced = invoke("trace", opened.path, "r1.2x3.0")
    assert "  opening (in the prompt's tokens):" in traced
    html, markdown = (path.read_text() for path in write_report(opened))
    (row, *_) = sample_rows(opened.round(1), 1)
    plain = (shown, pairs, traced, str(row["completion"]))
    for view in (*plain, html, markdown):
        assert "Seven stones lie here." in view
        assert "\x1b" not in view
    for view in plain:
        assert "\npolicy 9 (graded):" not in view, "a text cannot pass for a label"
    assert '<span class="who">opening</span>' in html
    assert "**opening** Seven stones" in markdown
    assert str(row["completion"]).startswith("opening:\n  Seven stones")
    (facts,) = json.loads(
        invoke("show", opened.path, "--round", 1, "--trajectories", "--limit", 1, "--json")
    )
    assert facts["opening"].startswith("Seven stones")
    assert facts["turns"][0]["heading"].startswith("policy 1"), "headings stay with their turns"


def test_a_run_without_openings_is_written_and_shown_as_before(folder: RunFolder) -> None:
    path = folder.round(1).shard(0).of("trajectories")
    first = read_records(path, Trajectory)[0]
    assert first.opening == ()
    assert "opening" not in first.model_dump(mode="json")
    assert "opening" not in canonical_json(first), "its digest is that of older versions"
    older = Trajectory.model_validate(first.model_dump(mode="json") | {"opening": None})
    assert older == first, "a file of an older version has no such column"
    assert "opening:" not in invoke("show", folder.path, "--round", 1, "--trajectories")

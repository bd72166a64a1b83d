"""A small finished run, made by hand: the files that a real run leaves, without Ray, vLLM or a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.runs.events import EventKind, EventLog
from orchestrator.runs.folder import RoundFolder, RunFolder
from orchestrator.runs.identity import SCHEMA_VERSION, RunIdentity, write_identity
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Phase
from policies.base.records import (
    Ending,
    Feedback,
    Message,
    Prompt,
    RoundResult,
    RoundStatus,
    Sampling,
    Span,
    StopReason,
    ToolCall,
    ToolCallStatus,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from policies.examples.kinds import PreferencePair, TokenSequence, UnpairedExample
from policies.storage.artifacts import write_json, write_records
from policies.storage.policy_store import PolicyStore

PASS_AT_1 = (0.29, 0.39, 0.55, 0.67, 0.83)
"""Held-out score by round of the prototype."""
PHASES = ("draw", "collect", "train", "publish", "sync", "evaluate", "accept")
RUN_ID = "7c1f6f0e5f0b4d4e9d0c2a54a1b2c3d4"


def make_run(
    path: Path,
    *,
    rounds: int = 2,
    kind: str = "pair",
    extra_text: str = "",
    experiment: str = "multiply",
    tool_use: bool = False,
) -> RunFolder:
    """A run of round 0 and `rounds` trained rounds.

    Args:
        path: the run folder; made here.
        rounds: trained rounds.
        kind: `pair` or `unpaired` examples.
        extra_text: stands at the end of every completion, to see what becomes of hostile text.
        experiment: in the config.
        tool_use: every attempt is a conversation with an interpreter; the wrong ones see it fail.
    """
    folder = start_run(path, experiment=experiment)
    for index in range(rounds + 1):
        add_round(folder, index, kind=kind, extra_text=extra_text, tool_use=tool_use)
    return folder


def start_run(path: Path, *, experiment: str = "multiply") -> RunFolder:
    """A run folder in which no round has finished, with its starting policy."""
    folder = RunFolder(path)
    config = {
        "rounds": 4,
        "policy": {"model": "tiny", "adapter": None},
        "training": {"loss": {"type": "dpo", "beta": 0.1}, "learning_rate": 1e-5},
        "verifiers": [{"type": "numeric_match"}],
        "preferences": {"type": "right_vs_wrong"},
        "tracking": {"experiment": experiment, "uri": "sqlite:///mlflow.db"},
    }
    write_json(folder.config, config)
    identity = RunIdentity(
        schema_version=SCHEMA_VERSION,
        run_id=RUN_ID,
        name=path.name,
        experiment=experiment,
        created_at="2026-01-02T03:04:05+00:00",
        config_digest=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        versions={},
    )
    write_identity(folder, identity)
    _publish(folder, 0)
    return folder


def add_round(
    folder: RunFolder,
    index: int,
    *,
    kind: str = "pair",
    extra_text: str = "",
    tool_use: bool = False,
) -> RoundResult:
    """Finish round `index` in the folder, and return its result."""
    round_folder = folder.round(index)
    _write_shard(round_folder.evaluation, f"e{index}", index, ["6x7", "9x9"], extra_text, tool_use)
    if index:
        trajectories = _write_shard(
            round_folder, f"r{index}", index - 1, ["2x3", "4x5", "7x8"], extra_text, tool_use
        )
        _write_examples(round_folder, trajectories, kind)
        _write_steps(round_folder, index)
        _publish(folder, index)
    result = _result(index)
    Journal(folder.journal).append(index, Phase.ACCEPT, result)
    events = EventLog(folder.events)
    for phase, seconds in phase_seconds(index).items():
        events.emit(EventKind.PHASE_FINISHED, round_index=index, phase=phase, seconds=seconds)
    return result


def phase_seconds(index: int) -> dict[str, float]:
    """Made-up clocks of a round."""
    names = PHASES if index else ("sync", "evaluate", "accept")
    return {name: 1.5 + place for place, name in enumerate(names)}


def _result(index: int) -> RoundResult:
    metrics = {"eval/pass@1": PASS_AT_1[index % len(PASS_AT_1)], "eval/pass@4": 0.9}
    if index:
        metrics |= {"rollout/trajectories": 12.0, "train/loss": 0.6, "kl": 0.01 * index}
    return RoundResult(
        round=index,
        status=RoundStatus.IMPROVED if index else RoundStatus.UNTRAINED,
        before=max(index - 1, 0),
        after=index,
        reference=f"version {max(index - 1, 0)}",
        metrics=metrics,
    )


def _write_shard(
    folder: RoundFolder,
    prefix: str,
    version: int,
    ids: Sequence[str],
    extra_text: str,
    tool_use: bool,
) -> list[Trajectory]:
    """Prompts, two right and two wrong attempts at each, and their feedback."""
    prompts, trajectories, feedback = [], [], []
    for prompt_id in ids:
        left, right = (int(n) for n in prompt_id.split("x"))
        question = Message(role="user", content=f"What is {left} times {right}?")
        prompts.append(Prompt(id=prompt_id, messages=(question,), answer=left * right))
        for sample in range(4):
            value = left * right + sample % 2
            attempt = _attempt(
                f"{prefix}.{prompt_id}.{sample}",
                prompt_id,
                sample,
                version,
                f"It is {value}.{extra_text}",
            )
            if tool_use:
                attempt = conversation(attempt, is_right=sample % 2 == 0, extra_text=extra_text)
            trajectories.append(attempt)
            score = float(sample % 2 == 0)
            feedback.append(Feedback(trajectory_id=attempt.id, score=score, desirable=score == 1.0))
    shard = folder.shard(0)
    write_records(folder.prompts, Prompt, prompts)
    write_records(shard.prompts, Prompt, prompts)
    write_records(shard.of("trajectories"), Trajectory, trajectories)
    write_records(shard.of("feedback"), Feedback, feedback)
    return trajectories


def _attempt(identity: str, prompt_id: str, sample: int, version: int, text: str) -> Trajectory:
    turn = Turn(
        role="policy",
        token_ids=(7, 8, 9),
        text=text,
        logprobs=(-0.1, -0.2, -0.3),
        stop_reason=StopReason.STOP,
    )
    return Trajectory(
        id=identity,
        prompt_id=prompt_id,
        sample_index=sample,
        policy_version=version,
        policy_digest="9f",
        prompt_token_ids=(1, 2),
        turns=(turn,),
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
    )


def conversation(attempt: Trajectory, *, is_right: bool, extra_text: str = "") -> Trajectory:
    """The attempt with a tool call before its answer; a wrong one sees the call fail and runs out of turns."""
    call = attempt.turns[0].model_copy(
        update={"text": f"Let me compute it.\n```python\nprint(6 * 7)\n```{extra_text}"}
    )
    status = ToolCallStatus.OK if is_right else ToolCallStatus.FAILED
    seen = Turn(
        role="observation",
        token_ids=(40, 41),
        text=("Output: 42" if is_right else "NameError: name 'x' is not defined") + extra_text,
        stop_reason=StopReason.OBSERVATION,
        calls=(ToolCall(tool="python", status=status),),
    )
    changes: dict[str, object] = {"turns": (call, seen, attempt.turns[0]), "outcome": 1.0}
    if not is_right:
        changes |= {
            "outcome": 0.25,
            "status": TrajectoryStatus.TRUNCATED,
            "ending": Ending.TURN_LIMIT,
            "graded": Span(turn=0, start=0, end=3),
        }
    return attempt.model_copy(update=changes)


def _write_examples(folder: RoundFolder, trajectories: Sequence[Trajectory], kind: str) -> None:
    path = folder.shard(0).of("examples")
    if kind == "unpaired":
        examples = [
            UnpairedExample(
                id=t.id,
                prompt_id=t.prompt_id,
                sequence=TokenSequence.of(t),
                desirable=t.sample_index % 2 == 0,
                score=float(t.sample_index % 2 == 0),
            )
            for t in trajectories
        ]
        write_records(path, UnpairedExample, examples)
        return
    pairs = [
        PreferencePair(
            id=f"{good.id}>{bad.id}",
            prompt_id=good.prompt_id,
            chosen=TokenSequence.of(good),
            rejected=TokenSequence.of(bad),
            margin=1.0,
        )
        for good, bad in zip(trajectories[::2], trajectories[1::2], strict=True)
    ]
    write_records(path, PreferencePair, pairs)


def _write_steps(folder: RoundFolder, index: int) -> None:
    folder.train.mkdir(parents=True, exist_ok=True)
    rows = [
        {"step": step, "train/loss": 0.69 - 0.1 * step / index, "rewards/margins": 0.1 * step}
        for step in (1, 2, 3)
    ]
    folder.train_log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _publish(folder: RunFolder, number: int) -> None:
    """Weights of a few bytes: nothing reads them but the digest."""
    store = PolicyStore(folder.policies)
    weights = folder.path / "start" if number == 0 else folder.round(number).candidate
    weights.mkdir(parents=True, exist_ok=True)
    (weights / "model.safetensors").write_bytes(b"weights of version %d" % number)
    if number == 0:
        store.adopt_initial(weights)
    else:
        store.publish(weights, number=number, round_index=number, parent=number - 1)

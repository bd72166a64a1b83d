"""Prints for `pawl show`, `status` and `trace`: the same facts as plain values for scripts and as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from orchestrator.inspect.views.trace import find_prompts, find_trajectories, trajectories_of
from orchestrator.runs.conversation_text import (
    ending_text,
    headings_of,
    is_conversation,
    opening_text,
    told,
)
from orchestrator.runs.folder import RoundFolder, RunFolder
from orchestrator.runs.scores import pass_names, with_error
from orchestrator.runs.state import (
    first_records,
    round_of,
    round_summary,
    stream,
    stream_examples,
)
from orchestrator.runs.tables import shared_tokens
from policies.base.plain_text import duration, number, one_line, plain_text
from policies.base.records import Author, Feedback, Trajectory
from policies.examples.kind import Example

_INDENT = "    "
_TOLD_ELSEWHERE = ("id", "prompt_id", "prompt", "weight", "soft_label", "shared_tokens")
"""Facts about an example that have a place of their own, or are for scripts."""


def trajectories_view(folder: RunFolder, index: int, limit: int) -> list[dict[str, Any]]:
    """Attempts of a round with their scores; round 0 shows the measurement."""
    place = round_of(folder, index)
    found = first_records(place, "trajectories", Trajectory, limit)
    ids = {t.id for t in found}
    scores = {
        f.trajectory_id: f for f in stream(place, "feedback", Feedback) if f.trajectory_id in ids
    }
    return [_trajectory(t, scores.get(t.id)) for t in found]


def _trajectory(t: Trajectory, feedback: Feedback | None) -> dict[str, Any]:
    return {
        "id": t.id,
        "prompt_id": t.prompt_id,
        "status": t.status.value,
        "policy_version": t.policy_version,
        "author": t.author.value,
        "derived_from": t.derived_from,
        "tokens": t.num_policy_tokens,
        "score": None if feedback is None else feedback.score,
        **_conversation(t),
        "error": t.error,
    }


def _conversation(t: Trajectory) -> dict[str, Any]:
    """Turns with their headings, and how the attempt ended; single turns have no heading."""
    headings = headings_of(t) if is_conversation(t) else [""]
    return {
        "opening": opening_text(t),
        "turns": [
            {
                "role": turn.role,
                "text": turn.text,
                "stop_reason": turn.stop_reason.value,
                "calls": [call.model_dump(mode="json") for call in turn.calls],
                "heading": heading,
            }
            for turn, heading in zip(t.turns, headings, strict=False)
        ],
        "ending": t.ending.value,
        "outcome": t.outcome,
        "graded": None if t.graded is None else t.graded.model_dump(mode="json"),
        "ended": ending_text(t) if is_conversation(t) else "",
    }


def examples_view(folder: RunFolder, index: int, limit: int) -> list[dict[str, Any]]:
    """Examples of a round with the prompt and the texts behind them."""
    place = round_of(folder, index)
    examples = list(islice(stream_examples(place), limit))
    wanted = {i for e in examples for i in trajectories_of(e)}
    found = {t.id: t for t in find_trajectories(place, sorted(wanted))}
    prompts = _prompt_texts(place, {e.prompt_id for e in examples})
    is_mixed = len({s.policy_version for e in examples for s in e.sequences()}) > 1
    return [_example(e, prompts.get(e.prompt_id, ""), found, is_mixed) for e in examples]


def _example(
    example: Example, prompt: str, found: Mapping[str, Trajectory], is_mixed: bool
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": example.id,
        "prompt_id": example.prompt_id,
        "prompt": prompt,
        "weight": example.weight,
    }
    facts |= {name: value for name, value in example.row().items() if name != "desirable"}
    label = example.label()
    for name, sequence in example.sides().items():
        side = name if label is None else "desirable" if label else "undesirable"
        trajectory = found.get(sequence.trajectory_id)
        facts[side] = {
            "id": sequence.trajectory_id,
            "text": "" if trajectory is None else _told(trajectory),
        }
        if is_mixed:
            facts[side]["policy_version"] = sequence.policy_version
        if trajectory is not None and trajectory.author is not Author.POLICY:
            facts[side] |= {"author": trajectory.author.value, "role": trajectory.role}
            facts[side] |= {"derived_from": trajectory.derived_from}
        if trajectory is not None and is_conversation(trajectory):
            facts[side] |= _conversation(trajectory)
    if shared := shared_tokens(example, found):
        facts["shared_tokens"] = shared
    return facts


def _told(trajectory: Trajectory) -> str:
    """Plain text of a conversation; a single turn goes to scripts as it was sampled."""
    if is_conversation(trajectory):
        return told(trajectory)
    return "\n".join(turn.text for turn in trajectory.turns)


def _prompt_texts(place: RoundFolder, ids: Iterable[str]) -> dict[str, str]:
    found = find_prompts(place, ids)
    return {k: "\n".join(f"{m.role}: {m.full_text}" for m in p.messages) for k, p in found.items()}


def feedback_view(folder: RunFolder, index: int, limit: int) -> list[dict[str, Any]]:
    """Return what the verdicts on each attempt added up to."""
    found = first_records(round_of(folder, index), "feedback", Feedback, limit)
    return [f.model_dump(mode="json") for f in found]


def block(text: object, indent: str = _INDENT) -> str:
    """Foreign text, indented line by line."""
    return "\n".join(indent + line for line in plain_text(text).splitlines() or [""])


def trajectories_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Attempts for people."""
    parts = []
    for row in rows:
        score = "unscored" if row["score"] is None else f"score {number(row['score'])}"
        parts.append(
            f"{one_line(row['id'])}  {row['status']}  {score}  {row['tokens']} tokens  "
            f"{_writer(row, 'policy version')}"
        )
        if row["opening"]:
            parts += ["  opening:", block(row["opening"])]
        for turn in row["turns"]:
            if turn["heading"]:
                parts.append(f"  {one_line(turn['heading'], 200)}:")
            parts.append(block(turn["text"]))
        if row["ended"]:
            parts.append(f"  ended: {one_line(row['ended'], 200)}")
        if row["error"]:
            parts.append(block(f"error: {row['error']}"))
    return "\n".join(parts)


def examples_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Examples for people."""
    parts = []
    for row in rows:
        sides = [name for name, value in row.items() if isinstance(value, Mapping)]
        told = [name for name in row if name not in (*_TOLD_ELSEWHERE, *sides)]
        facts = [f"{one_line(name)} {number(row[name])}" for name in told]
        facts += [f"weight {number(row['weight'])}"] if row["weight"] != 1.0 else []
        facts += [f"first {row['shared_tokens']} tokens shared"] if row.get("shared_tokens") else []
        parts.append("  ".join([one_line(row["id"]), *facts]))
        parts.append(block(row["prompt"], "  "))
        for side in sides:
            version = row[side].get("policy_version")
            by = "" if version is None else f", policy version {version}"
            by = f", by {_writer(row[side])}" if row[side].get("author") else by
            parts.append(f"  {one_line(side)} {one_line(row[side]['id'])}{by}:")
            parts.append(block(row[side]["text"]))
    return "\n".join(parts)


def feedback_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Feedback for people."""
    parts = []
    for row in rows:
        result = f"score {number(row['score'])}" if row["score"] is not None else "no score"
        if row["unusable_because"]:
            result = f"unusable: {one_line(row['unusable_because'])}"
        parts.append(f"{one_line(row['trajectory_id'])}  {result}")
        if row["steps"]:
            right = sum(step["desirable"] for step in row["steps"])
            parts.append(f"{_INDENT}steps: {right} of {len(row['steps'])} right")
        parts += [_INDENT + _verdict(v) for v in row["verdicts"]]
    return "\n".join(parts)


def _verdict(verdict: Mapping[str, Any]) -> str:
    said = {
        "scored": f"score {number(verdict['score'])}",
        "error": f"error: {one_line(verdict['error'], 200)}",
    }
    source, span = one_line(verdict["source"]), verdict.get("span")
    if span is not None:
        source += f" on turn {span['turn']}, tokens {span['start']} to {span['end']}"
    if verdict.get("policy_version") is not None:
        source += f" (policy version {verdict['policy_version']})"
    if verdict["confidence"] != 1.0:
        source += f", confidence {number(verdict['confidence'])}"
    text = f"{source}: {said.get(verdict['status'], verdict['status'])}"
    return text + (f" ({one_line(verdict['rationale'], 200)})" if verdict["rationale"] else "")


def summary_text(folder: RunFolder, index: int) -> str:
    """One round for people."""
    facts = round_summary(folder, index)
    heading = f"round {index}: {facts['status']}"
    if facts.get("reason"):
        heading += f" ({one_line(facts['reason'], 200)})"
    lines = [heading]
    for key, name in (
        ("num_prompts", "prompts"),
        ("num_trajectories", "trajectories"),
        ("num_examples", "examples"),
        ("before", "policy before"),
        ("after", "policy after"),
        ("reference", "reference"),
        ("skipped_because", "skipped because"),
        ("removed", "removed"),
    ):
        if facts.get(key) not in (None, ""):
            lines.append(f"  {name}: {one_line(facts[key], 200)}")
    lines += [f"  damaged: {one_line(text, 400)}" for text in facts["damage"]]
    for key in ("on_disk", "dropped", "metrics"):
        if facts.get(key):
            lines.append(f"  {key.replace('_', ' ')}:")
            lines += [f"{_INDENT}{one_line(k)}: {number(v)}" for k, v in sorted(facts[key].items())]
    if facts["seconds"]:
        lines.append(
            "  time: " + ", ".join(f"{k} {duration(v)}" for k, v in facts["seconds"].items())
        )
    return "\n".join(lines)


def _writer(facts: Mapping[str, Any], word: str = "version") -> str:
    """Name who wrote an attempt: a version of the policy, a log, or an edit with what it revises."""
    author = facts.get("author") or Author.POLICY
    if author == Author.POLICY:
        return f"{word} {facts['policy_version']}"
    origin = facts.get("derived_from")
    author = facts.get("role") or author
    return f"{author}{'' if origin is None else f' of {one_line(origin)}'}"


def _traced_trajectory(t: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """A trajectory of a trace, turn by turn; the steps that were judged stand by themselves."""
    mean = "" if t["mean_logprob"] is None else f", mean log-prob {t['mean_logprob']:.3f}"
    lines = [
        f"trajectory {one_line(t['id'])}  {t['status']}  {_writer(t, 'policy version')}",
        f"  tokens: {t['prompt_tokens']} prompt, {t['policy_tokens']} policy, "
        f"{t['observation_tokens']} observation; {t['scored_tokens']} in the loss{mean}",
    ]
    if t["opening"]:
        lines += ["  opening (in the prompt's tokens):", block(t["opening"])]
    for index, (turn, heading) in enumerate(zip(t["turns"], t["headings"], strict=False)):
        lines.append(
            f"  {one_line(heading, 200)}: {len(turn['token_ids'])} tokens, {turn['stop_reason']}"
        )
        judged = {
            (s["span"]["start"], s["span"]["end"]): s for s in scores if s["span"]["turn"] == index
        }
        if not turn["steps"] or not judged:
            lines.append(block(turn["text"]))
            continue
        for step in turn["steps"]:
            score = judged.get((step["start"], step["end"]))
            said = "not scored" if score is None else f"score {number(score['score'])}"
            lines.append(f"{_INDENT}step, tokens {step['start']} to {step['end']}, {said}:")
            lines.append(block(step["text"].rstrip("\n"), _INDENT * 2))
    return [*lines, f"  ended: {one_line(t['ending_text'], 200)}"]


def trace_text(facts: Mapping[str, Any]) -> str:
    """A trace for people, from the example down to the policy."""
    place = f"round {facts['round']}{' (measurement)' if facts['measurement'] else ''}"
    lines = [f"{facts['kind']} {one_line(facts['id'])}, {place}"]
    if facts["example"]:
        shown = {k: v for k, v in facts["example"].items() if k not in ("id", "prompt_id")}
        lines.append("  " + ", ".join(f"{k} {number(v)}" for k, v in shown.items()))
    if rounds := facts["learned_in"]:
        lines.append(f"  learned in rounds {', '.join(map(str, rounds))}")
    steps = {f["trajectory_id"]: f["steps"] for f in facts["feedback"]}
    for t in facts["trajectories"]:
        lines += _traced_trajectory(t, steps.get(t["id"], []))
    lines += [
        f"verdict on {one_line(v['trajectory_id'])}  {_verdict(v)}" for v in facts["verdicts"]
    ]
    for c in facts["comparisons"]:
        p = (
            "failed"
            if c["probability"] is None
            else f"first better with probability {c['probability']:.2f}"
        )
        lines.append(
            f"comparison by {one_line(c['source'])}: {one_line(c['first'])} against "
            f"{one_line(c['second'])}: {p}{'' if c['agreed'] else ', orders disagree'}"
        )
    lines += [
        f"feedback on {one_line(f['trajectory_id'])}: "
        f"{'unusable: ' + one_line(f['unusable_because']) if f['unusable_because'] else 'score ' + number(f['score'])}"
        for f in facts["feedback"]
    ]
    for prompt in facts["prompts"]:
        lines.append(f"prompt {one_line(prompt['id'])}  answer {one_line(prompt['answer'])}")
        lines += [block(f"{m['role']}: {m['content']}") for m in prompt["messages"]]
    for version in facts["policy_versions"]:
        known = "no manifest"
        if "digest" in version:
            where = version.get("removed") or version["path"]
            known = f"{version['digest'][:12]}  {one_line(where, 200)}"
        parent = "" if version.get("parent") is None else f", from version {version['parent']}"
        lines.append(f"policy version {version['number']}  {known}{parent}")
    if facts["result"]:
        result = facts["result"]
        scores = ", ".join(
            f"{k} {with_error(result['metrics'], k)}" for k in pass_names(result["metrics"])
        )
        lines.append(
            f"round {result['round']}: {result['status']}, version {result['before']} -> "
            f"{result['after']}  {scores}"
        )
    return "\n".join(lines)

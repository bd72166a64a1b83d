"""Contradictions between the sources of scores and what is made of them: found before a run, with the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from policies.base.component_walk import stated_requirements
from policies.base.errors import explain
from workers.judge.judge import Judge
from workers.scoring.normalize import GROUP_SCALES
from workers.verify.verifier import Verifier

if TYPE_CHECKING:
    from orchestrator.config.run_sections import RunSections
    from orchestrator.config.stages import Stage


def problems(config: RunSections, stages: Iterable[Stage]) -> Iterator[str]:
    """Every contradiction about scores: sources that are not there, raw scores where they mean nothing."""
    feedback = config.feedback
    given = _raw([*config.verifiers, *config.judges])
    unknown = next((name for name in feedback.normalize if name not in given), None)
    if unknown is not None:
        yield _unknown_scale(unknown, given)
        return
    sources = feedback.scales(given)
    refused = feedback.combine.refused(sources)
    if refused is not None:
        yield refused
        return
    yield from _levels(config)
    raw = feedback.combine.gives_raw(sources)
    yield from _threshold(config, [name for name, is_raw in sources.items() if is_raw], raw=raw)
    for stage in stages:
        at = f"stages[{stage.index}]: " if config.stages else ""
        if (refused := stage.preferences.refused_scores(raw)) is not None:
            yield f"{at}{refused}"
    yield from _evaluation(config, raw=raw)


def _raw(graders: Iterable[Verifier.Config | Judge.Config]) -> dict[str, bool]:
    """Sources by name, and whether their scores may be any finite number."""
    return {grader.source: stated_requirements(grader).raw_scores for grader in graders}


def _levels(config: RunSections) -> Iterator[str]:
    """Contradictions of steps and whole attempts, which are combined apart."""
    graders: list[Verifier.Config | Judge.Config] = [*config.verifiers, *config.judges]
    for level, what in (("trajectory", "whole attempts"), ("step", "steps")):
        sources = [grader.source for grader in graders if grader.level == level]
        missing = [name for name in config.feedback.combine.needs() if name not in sources]
        if sources and missing:
            yield explain(
                f"feedback.combine gives no score without {missing[0]}, which does not grade {what} as "
                f"{', '.join(sources)} does",
                value=missing[0],
                where="feedback.combine",
                fix="use combine: {type: mean}, or give all of them one level",
            )


def _unknown_scale(name: str, sources: dict[str, bool]) -> str:
    close = difflib.get_close_matches(name, sources, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return explain(
        "feedback.normalize names a source that no verifier and no judge has",
        value=name,
        where="feedback.normalize",
        fix=f"{hint}known: {', '.join(sources)}",
    )


def _threshold(config: RunSections, raw_sources: list[str], *, raw: bool) -> Iterator[str]:
    feedback = config.feedback
    measured = {
        v.source for v in config.evaluation_verifiers
    }  # places among attempts measure nothing
    scales = ", ".join(f"{n}: {'sigmoid' if n in measured else 'rank'}" for n in raw_sources)
    if raw and "desirable_at" not in feedback.model_fields_set:
        yield explain(
            f"the usable score is raw ({', '.join(raw_sources)}), and nothing says from which score on an attempt "
            "counts as right",
            value=feedback.desirable_at,
            where="feedback.desirable_at (not set)",
            fix=f"set feedback.desirable_at: 0.0, or feedback.normalize: {{{scales}}}",
        )
    if not raw and not 0.0 <= feedback.desirable_at <= 1.0:
        yield explain(
            "usable scores lie in [0, 1]: nothing, or everything, would count as right",
            value=feedback.desirable_at,
            where="feedback.desirable_at",
            fix="give a number in [0, 1], e.g. feedback.desirable_at: 0.5",
        )


def _agreement(verifiers: Sequence[Verifier.Config]) -> Iterator[str]:
    """Held-out attempts would be graded by what they agree on, and not by what is right."""
    agreeing = [v.source for v in verifiers if stated_requirements(v).agreement]
    if agreeing:
        yield explain(
            f"{agreeing[0]} would grade held-out prompts by what the attempts agree on: a policy that says the same "
            "wrong thing every time would measure 1",
            value=agreeing,
            where="verifiers, and evaluation.verifiers (not set)",
            fix="set evaluation.verifiers=[{type: numeric_match}] and give held-out prompts their answers; or name "
            f"{agreeing[0]} there, if agreement is what you want to measure",
        )


def _evaluation(config: RunSections, *, raw: bool) -> Iterator[str]:
    """Contradictions of the measurement, which has the verifiers alone."""
    feedback, own = config.feedback, config.evaluation.desirable_at
    given = _raw(v for v in config.evaluation_verifiers if v.level == "trajectory")
    if not given:
        return  # told elsewhere
    if config.evaluation.verifiers is None:
        yield from _agreement(config.evaluation_verifiers)
    sources = feedback.scales(given)
    by_place = [name for name in sources if feedback.normalize.get(name) in GROUP_SCALES]
    if by_place:
        yield explain(
            f"{by_place[0]} grades held-out attempts, and feedback.normalize leaves only their places among each "
            "other: every policy would measure the same",
            value=feedback.normalize[by_place[0]],
            where=f"feedback.normalize.{by_place[0]}",
            fix=f"set feedback.normalize: {{{by_place[0]}: sigmoid}}, or name others in evaluation.verifiers",
        )
    combine = feedback.combine
    missing = [name for name in combine.needs() if name not in sources]
    if missing:
        yield explain(
            f"feedback.combine gives no score without {missing[0]}, and it does not grade held-out attempts",
            value=list(sources),
            where="evaluation.verifiers",
            fix=f"name a verifier {missing[0]!r} there (judges are not used), or put another source first in "
            "feedback.combine",
        )
        return
    refused = combine.refused_scores(sources)
    if refused is not None:
        yield f"evaluation: {refused}"
        return
    measured_raw = combine.gives_raw(sources)
    if own is None and measured_raw != raw:
        what = ("raw", "in [0, 1]") if raw else ("in [0, 1]", "raw")
        yield explain(
            f"scores are {what[0]} in training and {what[1]} in the measurement: feedback.desirable_at cannot hold for "
            "both",
            value=feedback.desirable_at,
            where="feedback.desirable_at",
            fix=f"set evaluation.desirable_at: {0.0 if measured_raw else 0.5}",
        )
    if own is not None and not measured_raw and not 0.0 <= own <= 1.0:
        yield explain(
            "held-out scores lie in [0, 1]",
            value=own,
            where="evaluation.desirable_at",
            fix="set evaluation.desirable_at: 0.5",
        )

"""Contradictions about roles, found before a run: each with the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from orchestrator.config.roles import RoleSettings
from policies.base.component_walk import requirements_of, stated_requirements
from policies.base.requirements import POLICY

if TYPE_CHECKING:
    from orchestrator.config.run_sections import RunSections
    from orchestrator.config.stages import Stage


def problems(config: RunSections, stages: tuple[Stage, ...]) -> Iterator[str]:
    """Every contradiction about roles: names that nobody has, roles that nobody asks, answers without meaning."""
    asked: set[str] = set()
    for stage in stages:
        at = f"stages[{stage.index}]." if config.stages else ""
        names = [share.role for share in stage.mixture if share.role is not None]
        asked.update(names)
        if len(names) > 1:
            yield (
                f"{at}rollout.mixture names {len(names)} roles ({', '.join(names)}): one may answer beside the policy. "
                "Fix: leave the others out"
            )
        for name in names:
            if name not in config.roles:
                yield _unknown(f"{at}rollout.mixture", name, config.roles)
        turns = stated_requirements(stage.strategy).max_turns
        if names and turns is not None and turns > 1:
            yield (
                f"{at}rollout.mixture names the role {names[0]!r}, which answers once, but the strategy "
                f"{stage.strategy.type!r} has up to {turns} turns. Fix: use strategy {{type: independent}}, or leave "
                "the role out"
            )
    for name, role in config.roles.items():
        if name not in asked:
            yield (
                f"nothing asks the role {name!r}. Fix: give it samples, rollout.mixture=[{{role: {name}, samples: 1}}]"
                f", or leave roles.{name} out"
            )
        if any(model.name == POLICY for model in requirements_of(role.backend).models):
            yield (
                f"roles.{name}.backend answers with the policy itself. Fix: let an earlier policy sample, "
                "rollout.mixture=[{rounds_ago: 1, samples: 1}], or give the backend another model"
            )


def _unknown(where: str, name: str, roles: Mapping[str, RoleSettings]) -> str:
    close = difflib.get_close_matches(name, roles, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    known = ", ".join(roles) or "none"
    return f"{where} names the role {name!r}, which roles does not have. {hint}Known: {known}. Fix: add roles.{name}"

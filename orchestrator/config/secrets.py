"""Secrets that leave the driver: which environment variables workers may see, and which are withheld."""

from __future__ import annotations

from orchestrator.config.requirements import Placed
from orchestrator.config.run_config import RunConfig
from policies.base.component_walk import named_secrets


def passed_secrets(config: RunConfig) -> set[str]:
    """Variables with secrets that workers may see: `cluster.pass_secrets`, and what components name and require."""
    named = {name for each in config.components for name in named_secrets(each.component)}
    return named.union(config.cluster.pass_secrets)


def withheld_secrets(config: RunConfig) -> list[tuple[Placed, str]]:
    """Components that require a secret which the config does not name, each with the variable."""
    passed = passed_secrets(config)
    return [(p, name) for p in config.components for name in p.needs.secrets if name not in passed]

"""Every family of components, in the order of a round: what `pawl components` and the contract suites walk."""

from __future__ import annotations

from typing import Any

from orchestrator.acceptance.rule import ACCEPTANCE
from orchestrator.prompts.source import PROMPT_SOURCES
from policies.base.component import Family
from policies.examples.builder import PREFERENCES
from policies.objectives.loss import LOSSES
from policies.objectives.reference import REFERENCES
from workers.judge.judge import BACKENDS, JUDGES
from workers.rollout.call_format import CALL_FORMATS
from workers.rollout.engine import ENGINES
from workers.rollout.environment import ENVIRONMENTS
from workers.rollout.strategy import STRATEGIES
from workers.rollout.tool import TOOLS
from workers.scoring.combiner import COMBINERS
from workers.scoring.metric import METRICS
from workers.training.engine import TRAINING_ENGINES
from workers.verify.verifier import VERIFIERS

FAMILIES: tuple[Family[Any], ...] = (
    PROMPT_SOURCES,
    ENGINES,
    STRATEGIES,
    TOOLS,
    CALL_FORMATS,
    ENVIRONMENTS,
    VERIFIERS,
    JUDGES,
    BACKENDS,
    METRICS,
    COMBINERS,
    PREFERENCES,
    LOSSES,
    REFERENCES,
    TRAINING_ENGINES,
    ACCEPTANCE,
)

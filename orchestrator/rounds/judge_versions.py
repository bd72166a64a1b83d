"""Names the versions of the run's policy that judge in a round: a pure function of the rounds that have finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.config.run_config import RunConfig
from policies.base.component_walk import requirements_of
from policies.base.policy_choice import PolicyChoice, chosen_version
from policies.base.records import PolicyVersion, RoundResult, RoundStatus
from policies.base.requirements import POLICY
from policies.storage.policy_store import PolicyStore

_PUBLISHED = (RoundStatus.IMPROVED, RoundStatus.KEPT, RoundStatus.REJECTED)


def own_judges(config: RunConfig) -> Iterator[tuple[str, PolicyChoice | None]]:
    """Name and chosen version of each judge that runs on the policy itself."""
    for judge in config.judges:
        for model in requirements_of(judge).models:
            if model.name == POLICY:
                yield judge.source, model.version


def judging_versions(config: RunConfig, results: Sequence[RoundResult]) -> dict[str, int]:
    """The version that each of these judges runs on in the round after `results`."""
    served = [result.after for result in results]
    published = {0} | {result.round for result in results if result.status in _PUBLISHED}
    return {
        source: chosen_version(choice, served, published) for source, choice in own_judges(config)
    }


def judging_policies(
    config: RunConfig, results: Sequence[RoundResult], store: PolicyStore
) -> dict[str, PolicyVersion]:
    """The same as versions with their weights.

    Raises:
        PolicyStoreError: one of them is not in the store.
    """
    return {source: store.get(n) for source, n in judging_versions(config, results).items()}


def judges_of_coming_rounds(config: RunConfig, served: Sequence[int]) -> set[int]:
    """Versions that a judge may run on in any round after those that served so.

    Args:
        config: the run's.
        served: by round, round 0 first; rounds that have not happened may have negative numbers.
    """
    wanted: set[int] = set()
    for _, choice in own_judges(config):
        if isinstance(choice, int):
            wanted.add(choice)
        wanted.add(chosen_version(choice, served, published=()))
    return wanted

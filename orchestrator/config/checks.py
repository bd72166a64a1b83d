"""Contradictions between the sections of a config, found before anything starts; each comes with the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from orchestrator.config import remote_code, role_checks, score_checks
from orchestrator.config.bucket_location import Location
from orchestrator.config.tracking_uri import redact
from policies.base.component_walk import stated_requirements
from policies.base.errors import ConfigurationError
from policies.examples.builder import PreferenceBuilder
from policies.objectives.loss import Loss
from workers.rollout.strategy import RolloutStrategy
from workers.training.engine import TrainingEngine

_ENDPOINT = re.compile(
    r"(?:https?://)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?/?"
)
_HOST_PORT = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")

if TYPE_CHECKING:
    from orchestrator.config.run_sections import RunSections
    from orchestrator.config.stages import Stage


def problems(config: RunSections) -> Iterator[str]:
    """Every contradiction between sections."""
    yield from _grading(config)
    yield from _sampling(config)
    yield from _address(config)
    yield from _storage(config)
    if config.training.workers > 1 and config.cluster.backend == "inline":
        yield (
            f"training.workers is {config.training.workers}, but cluster.backend inline runs one worker after the "
            "other: they would wait for each other. Fix: set training.workers to 1, or cluster.backend to ray"
        )
    if (several := config.training.resources.gpus) > 1:
        more = f" and training.workers={several:g}" if config.cluster.backend == "ray" else ""
        yield (
            f"training.resources.num_gpus is {several:g}, but a training process works with one GPU. Fix: set "
            f"training.resources.num_gpus=1{more}"
        )
    try:
        stages = config.resolved_stages
    except ValueError as error:
        yield str(error)
        return
    yield from _judges(config)
    yield from _ahead(config)
    yield from role_checks.problems(config, stages)
    yield from score_checks.problems(config, stages)
    yield from remote_code.problems(config)
    for stage in stages:
        yield from _stage(config, stage)


def _stage(config: RunSections, stage: Stage) -> Iterator[str]:
    at = f"stages[{stage.index}]." if config.stages else ""
    training = stage.training
    loss = type(training.loss).component
    assert issubclass(loss, Loss)
    builder = type(stage.preferences).component
    assert issubclass(builder, PreferenceBuilder)
    if loss.kind_name != builder.kind_name:
        read = loss.kind_name or "no named kind of"
        yield (
            f"{at}training.loss {training.loss.type!r} learns from {read} examples, but {at}preferences "
            f"{stage.preferences.type!r} makes {builder.kind_name} examples. Fix: change one of the two"
        )
    engine = cast("type[TrainingEngine]", type(training.engine).component)
    objective = loss(cast(Loss.Config, training.loss))
    refused = engine.refused(objective, training, config.policy.adapter)
    if refused is not None:
        yield f"{at}training: {refused}" if at else refused
    wants_steps = objective.reads_steps or stated_requirements(stage.preferences).judged_steps
    wanted = stated_requirements(stage.preferences).revisions
    if wanted and not stated_requirements(stage.strategy).revisions:
        yield (
            f"{at}preferences {stage.preferences.type!r} learns from revisions, and strategy {stage.strategy.type!r} "
            "makes none: there would be no example. Fix: give the rounds a strategy that does, e.g. "
            "stages=[{name: refine, strategy: {type: revise}}]"
        )
    if wants_steps and "step" not in _levels(config):
        yield (
            f"{at}training.loss {training.loss.type!r} or preferences {stage.preferences.type!r} learns from judged "
            "steps, and nothing judges steps. Fix: give a verifier or a judge `level: step`"
        )
    rollout = stage.sections.rollout
    if rollout.temperature == 0 and rollout.samples_per_prompt > 1:
        yield (
            f"{at}rollout.temperature is 0: all samples of a prompt would be equal. Fix: "
            "raise it, or set samples_per_prompt: 1"
        )
    fewest = builder.fewest_sequences
    if config.total_samples_of(stage.first_round) < fewest:
        yield (
            f"{at}rollout.samples_per_prompt is {rollout.samples_per_prompt}: a {builder.kind_name} needs at least "
            f"{fewest} attempts. "
            "Fix: raise it, or use a thresholded builder with loss kto"
        )
    micro = training.micro_batch_size or training.batch_size
    if training.batch_size % micro:
        yield (
            f"{at}training.batch_size {training.batch_size} is not a multiple of training.micro_batch_size {micro}. "
            f"Fix: make it one, e.g. {micro * max(1, training.batch_size // micro)}"
        )
    recorded = training.reference.logprobs == "rollout"
    if training.loss_mask == "completion" and recorded and objective.reference_names:
        yield (
            f"{at}training.loss_mask is 'completion', but the sampler has no log-probs of tokens that it did not "
            "write. Fix: set training.reference.logprobs: recompute (or loss_mask: policy, which is right)"
        )


def _ahead(config: RunSections) -> Iterator[str]:
    if config.rollout.ahead and config.limits.on_logprob_gap == "refuse":
        yield (
            "limits.on_logprob_gap is 'refuse', but with rollout.ahead no example is sampled by the version that "
            "trains: there is no gap to measure. Fix: set rollout.ahead=0, or limits.on_logprob_gap=recompute"
        )


def _sampling(config: RunSections) -> Iterator[str]:
    strategy = cast("type[RolloutStrategy]", type(config.rollout.strategy).component)
    if not (strategy.samples_policy and strategy.measures_policy):
        yield (
            f"rollout.strategy is {config.rollout.strategy.type!r}, whose attempts are not all answers of the policy: "
            "held-out prompts are attempted with rollout.strategy, and the policy would not be measured. Fix: give it "
            "to a stage (stages: [{name: warm_up, strategy: ...}]) and let rollout.strategy sample"
        )


def _address(config: RunSections) -> Iterator[str]:
    address = config.cluster.address
    if address in (None, "auto"):
        return
    assert address is not None
    if address.startswith("ray://"):
        yield (
            f"cluster.address is {address!r}: Ray Client passes pickled objects through an open port and is off. "
            "Fix: start pawl on the cluster (`ray job submit`), or give the head's host:port"
        )
    elif not _HOST_PORT.fullmatch(address) or not 0 < int(address.rpartition(":")[2]) < 65536:
        yield (
            f"cluster.address is {address!r}, which is neither `auto` nor host:port. Fix: give e.g. 10.0.0.5:6379, "
            "or null for a cluster on this machine"
        )


def _storage(config: RunSections) -> Iterator[str]:
    """The address of the copy and of its server, as the mirror will read them."""
    url, endpoint = config.storage.url, config.storage.endpoint_url
    if url is not None:
        try:
            Location.parse(url)
        except ConfigurationError as error:
            yield f"storage.url: {str(error).replace(' Set by: storage.url.', '')}"
    if endpoint is not None and not _is_endpoint(endpoint):
        yield (
            f"storage.endpoint_url is {redact(endpoint)!r}, which is no address of a server. Fix: give e.g. "
            "http://10.0.0.5:9000, or null for AWS"
        )


def _is_endpoint(text: str) -> bool:
    found = _ENDPOINT.fullmatch(text)
    return found is not None and (found["port"] is None or 0 < int(found["port"]) < 65536)


def _grading(config: RunSections) -> Iterator[str]:
    if not config.verifiers and not config.judges:
        yield "verifiers and judges are both empty: nothing would score a completion. Fix: give at least one"
    elif _levels(config) == {"step"}:
        yield (
            "every verifier and judge grades steps (level: step): nothing scores whole trajectories. Fix: add one with "
            "level: trajectory"
        )
    if not config.evaluation_verifiers:
        yield "nothing grades the held-out prompts. Fix: give evaluation.verifiers (judges are not used there)"
    elif all(v.level == "step" for v in config.evaluation_verifiers):
        yield "nothing grades the held-out prompts as a whole. Fix: give evaluation.verifiers with level: trajectory"
    sources = [v.source for v in config.verifiers] + [j.source for j in config.judges]
    twice = sorted({s for s in sources if sources.count(s) > 1})
    if twice:
        yield (
            f"two verifiers or judges are called {', '.join(twice)}. Fix: give one of them another `name`"
        )
    names = [metric.source for metric in config.metrics]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield f"two metrics are called {', '.join(twice)}. Fix: give one of them another `name`"


def _judges(config: RunSections) -> Iterator[str]:
    for judge in config.components_of("judge"):
        for version in (model.version for model in judge.needs.models):
            if isinstance(version, int) and version and version >= config.rounds:
                yield (
                    f"{judge.path}.version is {version}, but the last round, {config.rounds}, is judged before that "
                    f"version is there. Fix: set {judge.path}.version=current (the policy that serves), or initial"
                )


def _levels(config: RunSections) -> set[str]:
    """Return what the run's verifiers and judges grade: whole trajectories, steps, or both."""
    return {v.level for v in config.verifiers} | {j.level for j in config.judges}

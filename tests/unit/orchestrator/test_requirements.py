"""Components of a user's say what they require, and everybody who needs to know asks them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.files import load_config
from orchestrator.config.gpu_counts import with_gpu_counts
from orchestrator.config.remote_code import trusted_by
from orchestrator.config.run_config import RunConfig
from orchestrator.config.secrets import passed_secrets, withheld_secrets
from orchestrator.plan.lines import Plan
from orchestrator.plan.network import plan_network
from orchestrator.plan.preflight import make_plan
from orchestrator.rounds.judge_versions import judging_versions
from orchestrator.rounds.transfers import group_files
from orchestrator.runs.judge_models import judge_model_names
from orchestrator.runs.plug_in_changes import plug_ins_of
from policies.base.component import Component
from policies.base.component_walk import components_in, requirements_of
from policies.base.errors import ConfigurationError
from policies.base.records import Message, Prompt
from policies.base.requirements import ModelRequirement, Requirements
from policies.plug_ins.stand_ins import is_stand_in
from policies.storage.fake_model import write_fake_model
from tests.support.fake_runs import fake_tree
from workers.judge.judge import AskingJudge
from workers.verify.isolated_verifier import IsolatedVerifier
from workers.verify.probe import probe_attempts

BACKEND = '''
from policies.base.component import Component
from policies.base.requirements import ModelRequirement, Requirements
from workers.judge.backends.fake import FakeBackend


class RewardModel(FakeBackend):
    """Stands for a backend with a model of its own."""

    class Config(FakeBackend.Config):
        weights: str
        word_list: str
        key_variable: str = "REWARD_KEY"

        def requires(self) -> Requirements:
            model = ModelRequirement(
                name=self.weights, set_by="weights", gpus=1, memory_bytes=3_000_000_000, trusts_code=True
            )
            return super().requires() + Requirements(
                models=(model,),
                memory_bytes=500_000_000,
                secrets=(self.key_variable,),
                files=(self.word_list,),
                ports=("a reward server on 127.0.0.1",),
            )
'''

VERIFIER = '''
import os

from policies.base.requirements import ModelRequirement, Requirements
from workers.verify.verifier import Verifier


class Classifier(Verifier):
    """Stands for a verifier with a model of its own, and asks a server."""

    class Config(Verifier.Config):
        weights: str
        token_variable: str = "none"

        def requires(self):
            return Requirements(
                models=(ModelRequirement(name=self.weights, set_by="weights", gpus=1, memory_bytes=2_000_000_000),),
                hosts=("https://user:secret-word@scores.invalid",),
                secrets=("SCORES_TOKEN",),
            )

    def verify(self, prompt, trajectory):
        told = os.environ.get("SCORES_TOKEN") == "for-the-scores" and "OTHER_TOKEN" not in os.environ
        return self.scored(trajectory, 1.0 if told else 0.0)
'''

ENGINE = '''
from policies.base.component import Component
from policies.base.requirements import Hosting, Requirements
from workers.rollout.engines.fake import FakeEngine


class TwoCards(FakeEngine):
    """Stands for an engine that spreads a model over two GPUs."""

    class Config(FakeEngine.Config):
        def requires(self):
            return Requirements(hosting=Hosting(gpus=2, max_context=7, scripted=True))
'''


def write(root: Path, **modules: str) -> None:
    for name, text in modules.items():
        (root / f"{name}.py").write_text(text)


def loaded(root: Path, **changes: Any) -> RunConfig:
    path = root / "c.yaml"
    path.write_text(json.dumps(fake_tree(root, **changes)))
    return load_config(str(path)).config


def planned(config: RunConfig, root: Path, *, elsewhere: bool = True) -> Plan:
    return make_plan(config, run_folder=root / "runs" / "x", elsewhere=elsewhere)


def found(plan: Plan, what: str) -> str:
    return "\n".join(line.found for line in plan.lines if line.what == what)


@pytest.fixture
def judged(tmp_path: Path) -> RunConfig:
    """A config whose judge has a backend of the user's, which loads a model of its own."""
    write(tmp_path, backend=BACKEND)
    (tmp_path / "words.txt").write_text("good\n")
    weights = write_fake_model(tmp_path / "reward", 0.5)
    backend = {
        "type": f"{tmp_path}/backend.py:RewardModel",
        "weights": str(weights),
        "word_list": str(tmp_path / "words.txt"),
    }
    judges = [{"type": "rubric", "backend": backend}]
    return loaded(tmp_path, judges=judges, verify={"judge_workers": 2})


def backend_of(config: RunConfig) -> Component.Config:
    """The backend of the only judge."""
    judge = config.judges[0]
    assert isinstance(judge, AskingJudge.Config)
    return judge.backend


def test_the_plan_counts_the_memory_of_a_model_that_a_plug_in_loads(
    judged: RunConfig, tmp_path: Path
) -> None:
    assert is_stand_in(backend_of(judged)), "its class is not imported here"
    plan = planned(judged, tmp_path)
    assert "judges 7.0 GB" in found(plan, "memory")  # two workers with 3 GB and 0.5 GB each
    assert f"rubric is the model {tmp_path / 'reward'}" in found(plan, "judge")
    assert "a reward server on 127.0.0.1" not in found(plan, "ports"), "inline: nothing listens"


def test_a_judge_with_a_model_of_its_own_gets_a_gpu(judged: RunConfig) -> None:
    asked = with_gpu_counts(judged, 4)
    assert asked.verify.judge_resources.num_gpus == 1
    assert asked.verify.resources.num_gpus == 0
    assert with_gpu_counts(judged, 1).verify.judge_resources.num_gpus == 0.5


def test_secrets_code_trust_and_shipping_ask_the_plug_in(judged: RunConfig, tmp_path: Path) -> None:
    weights = str(tmp_path / "reward")
    assert "REWARD_KEY" in passed_secrets(judged)
    assert trusted_by(judged) == {"judges.0.backend.trust_remote_code": weights}
    assert judge_model_names(judged) == [weights]
    assert group_files(judged, "judge").reads == (weights,)
    assert group_files(judged, "verify").reads == ()
    assert str(tmp_path / "words.txt") in plug_ins_of(judged)


def test_a_backend_that_names_the_policy_is_handed_the_version_that_is_due(tmp_path: Path) -> None:
    own = BACKEND.replace("name=self.weights", 'name="policy", version="current"')
    write(tmp_path, backend=own)
    backend = {"type": f"{tmp_path}/backend.py:RewardModel", "weights": "-", "word_list": "-"}
    config = loaded(tmp_path, judges=[{"type": "rubric", "backend": backend}])
    assert judging_versions(config, []) == {"rubric": 0}
    assert judge_model_names(config) == []


def test_a_verifier_with_a_model_is_counted_gets_a_gpu_and_its_host_is_named(
    tmp_path: Path,
) -> None:
    write(tmp_path, verifier=VERIFIER)
    weights = write_fake_model(tmp_path / "classifier", 0.5)
    verifier = {"type": f"{tmp_path}/verifier.py:Classifier", "weights": str(weights)}
    config = loaded(tmp_path, verifiers=[verifier], verify={"workers": 3})
    plan = planned(config, tmp_path)
    assert "verifiers 6.0 GB" in found(plan, "memory")
    assert f"verifiers[0] loads {weights}" in found(plan, "model")
    assert with_gpu_counts(config, 3).verify.resources.num_gpus == 1
    assert group_files(config, "verify").reads == (str(weights),)
    network = Plan()
    plan_network(config, network)
    assert "verifiers[0] asks https://" in found(network, "network")
    assert "secret-word" not in found(network, "network")


def test_a_verifier_sees_the_secrets_that_it_requires_where_its_settings_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, verifier=VERIFIER)
    monkeypatch.setenv("SCORES_TOKEN", "for-the-scores")
    monkeypatch.setenv("OTHER_TOKEN", "kept")
    verifier = {"type": f"{tmp_path}/verifier.py:Classifier", "weights": "-"}
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),), answer=1)
    for variable, score, passed in (("SCORES_TOKEN", 1.0, True), ("none", 0.0, False)):
        config = loaded(tmp_path, verifiers=[verifier | {"token_variable": variable}])
        with IsolatedVerifier(config.verifiers[0]) as judge:
            assert judge.verify(prompt, probe_attempts(prompt, 8)[0]).score == score
        assert ("SCORES_TOKEN" in passed_secrets(config)) == passed
        assert [name for _, name in withheld_secrets(config)] == (
            [] if passed else ["SCORES_TOKEN"]
        )


def test_an_engine_says_how_many_gpus_a_copy_takes_and_how_long_a_sequence_may_be(
    tmp_path: Path,
) -> None:
    write(tmp_path, engine=ENGINE)
    engine = {"type": f"{tmp_path}/engine.py:TwoCards"}
    config = loaded(tmp_path, rollout={"engine": engine, "resources": {"num_gpus": 1}})
    plan = planned(config, tmp_path)
    assert "a copy takes 2 GPUs, but a rollout worker asks for 1 GPU" in found(plan, "GPUs")
    assert "but the limit is 7" in found(plan, "context")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('no such key')", r"RewardModel.Config.requires failed: KeyError"),
        ("return {'models': 1}", r"RewardModel.Config.requires must return Requirements"),
    ],
)
def test_requires_that_fails_or_returns_something_else_is_refused(
    tmp_path: Path, body: str, said: str
) -> None:
    head, _, tail = BACKEND.partition("def requires(self) -> Requirements:\n")
    write(tmp_path, backend=f"{head}def requires(self):\n            {body}\n{tail[:0]}")
    backend = {"type": f"{tmp_path}/backend.py:RewardModel", "weights": "-", "word_list": "-"}
    with pytest.raises(ConfigurationError, match=said):
        loaded(tmp_path, judges=[{"type": "rubric", "backend": backend}])


def test_settings_that_lack_what_every_member_of_a_family_has_are_refused(tmp_path: Path) -> None:
    text = VERIFIER.replace("class Config(Verifier.Config)", "class Config(Component.Config)")
    write(tmp_path, verifier=f"from policies.base.component import Component\n{text}")
    verifier = {"type": f"{tmp_path}/verifier.py:Classifier", "weights": "-"}
    with pytest.raises(ConfigurationError, match=re.escape("must inherit Verifier.Config")):
        loaded(tmp_path, verifiers=[verifier])


def test_requirements_add_up_without_repeats() -> None:
    model = ModelRequirement(name="org/a")
    one = Requirements(models=(model,), secrets=("A",), memory_bytes=1, max_turns=2)
    both = one + Requirements(models=(model,), secrets=("B",), memory_bytes=2)
    assert both == Requirements(models=(model,), secrets=("A", "B"), memory_bytes=3, max_turns=2)


def test_a_component_is_found_before_those_in_its_settings(judged: RunConfig) -> None:
    places = [place for place, _ in components_in(judged.judges)]
    assert places == [(0,), (0, "backend")]
    (model,) = requirements_of(judged.judges[0]).models
    assert model.set_by == "backend.weights"
    assert issubclass(type(backend_of(judged)), Component.Config)

"""Dropout and its kin are off in an update whatever the model's config says, and noise under any name is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, CLIPVisionConfig, LlavaConfig

from policies.base.errors import TrainingError
from tests.support.architectures import NOISY, write_architecture
from tests.support.training_cases import log_of, make_engine, make_job, make_loss, pairs, version
from workers.training.checkpoints.weights import load_model
from workers.training.engine import AdapterSettings
from workers.training.noise import check_quiet, silence

IDS = list(range(4, 52))


def load(path: Path) -> Any:
    return load_model(str(path), device="cpu", attention="eager", trust_remote_code=False)


@pytest.mark.parametrize("kind", NOISY)
def test_a_loaded_model_gives_the_same_log_probs_in_training_and_evaluation_mode(
    kind: str, tmp_path: Path
) -> None:
    model = load(write_architecture(tmp_path / "m", kind, NOISY[kind]))
    ids = torch.tensor([IDS])
    with torch.no_grad():
        quiet = model.eval()(ids).logits
        assert all(torch.equal(model.train()(ids).logits, quiet) for _ in range(8))
    check_quiet(model, IDS)


@pytest.mark.parametrize("kind", NOISY)
def test_with_the_policy_as_reference_and_no_step_to_speak_of_the_loss_stays_neutral(
    kind: str, tmp_path: Path
) -> None:
    policy = version(write_architecture(tmp_path / "m", kind, NOISY[kind]))
    job = make_job(policy, tmp_path)
    make_engine("trl", make_loss("dpo"), learning_rate=1e-12).update(job, pairs())
    losses = [line["train/loss"] for line in log_of(job)]
    assert losses
    assert losses == pytest.approx([math.log(2)] * len(losses), abs=1e-4)


def test_the_published_config_keeps_the_values_of_its_owner(tmp_path: Path) -> None:
    policy = version(write_architecture(tmp_path / "m", "llama", NOISY["llama"]))
    job = make_job(policy, tmp_path)
    make_engine("trl", make_loss("dpo")).update(job, pairs())
    published = json.loads((Path(job.output_dir) / "config.json").read_text())
    assert published["attention_dropout"] == 0.2


def test_the_dropout_of_an_adapter_is_the_users_own_and_stays(tmp_path: Path) -> None:
    policy = version(write_architecture(tmp_path / "m", "llama", NOISY["llama"]))
    losses = []
    for dropout in (0.0, 0.5):
        folder = tmp_path / str(dropout)
        folder.mkdir()
        adapter = AdapterSettings(rank=4, dropout=dropout)
        job = make_job(policy, folder)
        engine = make_engine("trl", make_loss("dpo"), adapter, learning_rate=5e-2)
        engine.update(job, pairs())
        losses.append([line["train/loss"] for line in log_of(job)])
    assert losses[0] != losses[1]


def test_every_name_of_a_rate_is_known_in_nested_configs_too_and_switches_are_left_alone() -> None:
    inner = AutoConfig.for_model("llama", attention_dropout=0.1)
    config = LlavaConfig(text_config=inner, vision_config=CLIPVisionConfig(attention_dropout=0.2))
    names = [
        *("embd_pdrop", "decoder_layerdrop", "layer_drop", "drop_path_rate", "drop_prob"),
        *("dropatt", "moe_jitter_eps", "attention_probs_dropout_prob", "ff_dropout"),
    ]
    for name in names:
        setattr(config.text_config, name, 0.1)
    config.text_config.normalize_router_prob_before_dropping = True
    config.text_config.rope_theta = 10000.0
    found = silence(config)
    assert {"text_config.attention_dropout", "vision_config.attention_dropout"} <= found.keys()
    assert {f"text_config.{name}" for name in names} <= found.keys()
    assert all(getattr(config.text_config, name) == 0.0 for name in names)
    assert config.text_config.normalize_router_prob_before_dropping is True
    assert config.text_config.rope_theta == 10000.0
    assert silence(config) == {}, "once is enough"


def with_noise(model: Any) -> Any:
    """A model whose second block adds noise under a name that nobody knows."""
    block = model.model.layers[1].mlp
    before = block.forward

    def forward(x: Any) -> Any:
        y = before(x)
        return y + 0.05 * torch.randn_like(y) if block.training else y

    block.forward = forward
    return model


def test_noise_that_no_setting_turns_off_is_refused_with_the_module_that_makes_it(
    tmp_path: Path,
) -> None:
    model = with_noise(load(write_architecture(tmp_path / "m", "llama", NOISY["llama"])))
    with pytest.raises(TrainingError, match=r"first in model\.layers\.1\.mlp ") as caught:
        check_quiet(model, IDS)
    assert "choose another policy.model" in str(caught.value)
    assert not model.training


def test_noise_under_an_unknown_name_of_the_config_is_named_and_the_remedy_works(
    tmp_path: Path,
) -> None:
    model = with_noise(load(write_architecture(tmp_path / "m", "llama", NOISY["llama"])))
    model.config.mlp_noise_std = 0.05
    with pytest.raises(TrainingError, match=r"Fix: set mlp_noise_std to 0 in its config\.json"):
        check_quiet(model, IDS)
    check_quiet(load(tmp_path / "m"), IDS)


def test_a_model_that_trains_by_sampling_its_experts_is_refused_before_a_step(
    tmp_path: Path,
) -> None:
    sizes = {k: v for k, v in NOISY["mixtral"].items() if k != "router_jitter_noise"}
    policy = version(write_architecture(tmp_path / "m", "phimoe", sizes))
    with pytest.raises(TrainingError, match="noisy in training mode"):
        make_engine("trl", make_loss("dpo")).update(make_job(policy, tmp_path), pairs())
    assert not (tmp_path / "new").exists()

"""The loss of a mixture of experts' routers is added where it is asked for and nowhere else, in both ways."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from policies.base.errors import ConfigurationError, TrainingError
from policies.objectives.logprobs import padded
from tests.support.training_cases import (
    VOCABULARY,
    demonstrations,
    log_of,
    make_engine,
    make_job,
    make_loss,
    pairs,
    singles,
    version,
    weights_of,
    write_tiny_model,
)
from workers.training.engine import TrainingOptions
from workers.training.refusals import refused_because

COEFFICIENT = 0.5
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
    "num_experts_per_tok": 1,
    "router_aux_loss_coef": COEFFICIENT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_experts(path: Path, kind: str, **changes: Any) -> Path:
    """A tiny mixture of experts with the tokenizer of the other tiny models."""
    import transformers

    write_tiny_model(path)
    (path / "model.safetensors").unlink()
    torch.manual_seed(0)
    if kind == "mixtral":
        config = transformers.MixtralConfig(**{**SIZES, "num_local_experts": 3, **changes})
        transformers.MixtralForCausalLM(config).save_pretrained(path)
    else:
        own = {"num_experts": 3, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
        qwen = transformers.Qwen2MoeConfig(**{**SIZES, **own, **changes})
        transformers.Qwen2MoeForCausalLM(qwen).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["mixtral", "qwen"])
def experts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose config asks for its routers' logits, as some published ones do."""
    folder = tmp_path_factory.mktemp(request.param)
    return write_experts(folder / "model", request.param, output_router_logits=True)


BOTH_WAYS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "dpo_by_trl": ("dpo", {}, pairs()),
    "dpo_by_us": ("dpo", {"label_smoothing": 0.1}, pairs()),
    "dpo_weighted": ("dpo", {}, pairs(weight=2.0)),
    "kto_by_trl": ("kto", {"desirable_weight": 1.0, "undesirable_weight": 1.0}, singles()),
    "sft_by_trl": ("sft", {}, demonstrations()),
    "sft_by_us": ("sft", {"average": "sequences"}, demonstrations()),
}


def first_loss(name: str, model: Path, folder: Path, *, router: bool) -> tuple[float, Any]:
    loss, settings, examples = BOTH_WAYS[name]
    folder.mkdir()
    job = make_job(version(model), folder)
    engine = make_engine("trl", make_loss(loss, **settings), batch_size=12, router_aux_loss=router)
    engine.update(job, examples)
    return log_of(job)[0]["train/loss"], job


def aux_loss(model: Path, name: str) -> float:
    """The model's own loss of its routers, on the sequences of the step."""
    from transformers import AutoModelForCausalLM

    _, _, examples = BOTH_WAYS[name]
    sides = len(examples[0].sequences())
    rows = [e.sequences()[side] for side in range(sides) for e in examples]
    ids, attention, _ = padded(rows)
    with torch.no_grad():
        output = AutoModelForCausalLM.from_pretrained(model)(
            input_ids=ids, attention_mask=attention, output_router_logits=True
        )
    return float(output.aux_loss)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_the_routers_loss_is_added_when_asked_for_and_only_then(
    name: str, experts: Path, tmp_path: Path
) -> None:
    without, _ = first_loss(name, experts, tmp_path / "off", router=False)
    with_it, job = first_loss(name, experts, tmp_path / "on", router=True)
    expected = {"dpo_by_trl": math.log(2), "dpo_by_us": math.log(2), "kto_by_trl": 0.5}
    if name in expected:
        assert without == pytest.approx(expected[name], abs=1e-4)
    added = COEFFICIENT * aux_loss(experts, name)
    assert added > 0.1
    assert with_it - without == pytest.approx(added, rel=1e-3)
    assert log_of(job)[0]["train/router_aux_loss"] == pytest.approx(added / COEFFICIENT, rel=1e-3)
    kept = weights_of(experts).keys()
    assert weights_of(job.output_dir).keys() == kept


def test_a_model_without_routers_is_refused_when_their_loss_is_wanted(tmp_path: Path) -> None:
    plain = write_tiny_model(tmp_path / "plain")
    silent = write_experts(tmp_path / "silent", "mixtral", router_aux_loss_coef=0.0)
    for number, model in enumerate((plain, silent)):
        folder = tmp_path / str(number)
        folder.mkdir()
        engine = make_engine("trl", make_loss("dpo"), router_aux_loss=True)
        with pytest.raises(TrainingError, match=r"training\.router_aux_loss.*set it to false"):
            engine.update(make_job(version(model), folder), pairs())
        make_engine("trl", make_loss("dpo"), router_aux_loss=False)


@pytest.mark.parametrize("cut", [{"micro_batch_size": 2}, {"workers": 2}])
def test_the_routers_loss_is_refused_where_a_step_is_made_in_parts(cut: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="statistic of one forward pass"):
        make_engine("trl", make_loss("dpo"), router_aux_loss=True, **cut)
    for remedy in ({**cut, "router_aux_loss": False}, {"micro_batch_size": None, "workers": 1}):
        settings: dict[str, Any] = {"batch_size": 4, "router_aux_loss": True, **remedy}
        options = TrainingOptions(**settings)
        assert refused_because(make_loss("dpo"), options, None) is None

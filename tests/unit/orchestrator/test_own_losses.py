"""A user's loss: whose formula is computed, and which are refused before a run, with their file and line."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import tests.support.broken_losses as broken
import tests.support.own_losses as own
from orchestrator.config.files import load_config
from orchestrator.plan.lines import Plan
from orchestrator.plan.losses import plan_losses, plan_routers
from orchestrator.plan.model import ModelFacts
from policies.objectives.loss import LOSSES, Loss
from policies.objectives.loss_trial import refused_because
from tests.support.training_cases import make_loss

SHIPPED = sorted(name for name, where in LOSSES.members().items() if where.startswith("policies."))
ROOT = Path(__file__).parents[3]
BROKEN, OWN = (
    str(ROOT / "tests/support/broken_losses.py"),
    str(ROOT / "tests/support/own_losses.py"),
)
SOUND = (
    "ThousandHinge",
    "MiddleHinge",
    "FirmHinge",
    "SteepKTO",
    "PlainPairs",
    "PlainSingles",
    "PlainImitation",
    "CentredPairs",
)


def make(module: Any, name: str) -> Loss:
    found: type[Loss] = getattr(module, name)
    config: Any = found.Config.model_validate({"type": name})
    return found(config)


@pytest.mark.parametrize("name", SHIPPED)
def test_trl_may_compute_what_ships_unless_a_loss_says_otherwise(name: str) -> None:
    loss = make_loss(name)
    assert loss.trl_computes != loss.needs_custom_step


@pytest.mark.parametrize(
    ("name", "trl_computes"),
    [
        ("ThousandHinge", False),
        ("MiddleHinge", False),
        ("FirmHinge", True),
        ("SpelledHinge", False),
        ("SteepKTO", False),
        ("PlainPairs", False),
        ("PlainSingles", False),
        ("PlainImitation", False),
    ],
)
def test_trl_computes_only_formulas_whose_own_class_spells_them(
    name: str, trl_computes: bool
) -> None:
    assert make(own, name).trl_computes is trl_computes


def test_a_constant_or_a_constructor_that_a_formula_reads_makes_it_another_formula() -> None:
    hinge = type(make_loss("hinge"))
    assert not type("Scaled", (hinge,), {"scale": 3.0})(make_loss("hinge").config).trl_computes
    built = type("Built", (hinge,), {"__init__": hinge.__init__})
    assert not built(make_loss("hinge").config).trl_computes

    class Mixin:
        def of_scores(self, *_: Any) -> None: ...

    assert not type("Mixed", (Mixin, hinge), {})(make_loss("hinge").config).trl_computes


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_loss_passes_the_trial(name: str) -> None:
    assert refused_because(make_loss(name)) is None


@pytest.mark.parametrize("name", SOUND)
def test_sound_losses_of_users_pass_the_trial(name: str) -> None:
    assert refused_because(make(own, name)) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Averaged", "one number for each row"),
        ("Column", r"shape \[4, 1\]"),
        ("NoTensor", "no gradient"),
        ("Infinite", "the gradient is not finite|the loss is not finite"),
        ("SharpRoot", "the gradient is not finite at the reference"),
        ("Cut", "no gradient"),
        ("Flat", "no gradient"),
        ("Raising", "AttributeError"),
        ("Forgotten", "NotImplementedError"),
        ("Centred", "depends on the rows beside it"),
        ("Remembering", "another loss the second time"),
        ("Noisy", "another loss the second time"),
        ("Exiting", "SystemExit"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_where_it_is_written(name: str, says: str) -> None:
    import re

    refused = refused_because(make(broken, name))
    assert refused is not None
    assert re.search(says, refused), refused
    assert refused.count("Set by: training.loss (") == refused.count("Fix: ") == 1
    if name == "Forgotten":  # the formula that is missing is the base's
        return
    lines, first = inspect.getsourcelines(getattr(broken, name))
    line = int(refused.split(", line ")[1].split(")")[0])
    assert f"{BROKEN}, line " in refused
    assert first <= line < first + len(lines), refused


def test_the_remedy_for_a_loss_that_compares_rows_works() -> None:
    assert "`across_rows = True`" in str(refused_because(make(broken, "Centred")))
    assert refused_because(make(broken, "CentredMended")) is None


def planned(loss: str) -> Plan:
    config = load_config("fake-smoke", [f"training.loss={{type: '{loss}'}}"]).config
    plan = Plan()
    plan_losses(config, plan)
    return plan


def test_the_plan_tries_a_loss_from_a_file_and_refuses_it_with_its_line() -> None:
    assert planned("dpo").lines == []
    (sound,) = planned(f"{OWN}:PlainPairs").lines
    assert sound.verdict == "ok"
    (refused,) = planned(f"{BROKEN}:Raising").of("problem")
    assert f"{BROKEN}, line " in refused.found
    assert "chosen_logprobs" in refused.found


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({"router_aux_loss_coef": 0.02, "output_router_logits": False}, True),
        ({"text_config": {"router_aux_loss_coef": 0.02}}, True),
        ({"router_aux_loss_coef": 0.0}, False),
        ({"model_type": "llama"}, False),
    ],
)
def test_the_plan_refuses_a_routers_loss_that_the_model_does_not_have(
    settings: dict[str, Any], fits: bool
) -> None:
    sizes: dict[str, Any] = {"parameters": 1, "weight_bytes": 4, "tokenizer_size": None}
    facts = ModelFacts(
        Path("model"), config=settings, has_tokenizer=True, has_chat_template=True, **sizes
    )
    plans = {True: Plan(), False: Plan()}
    for wanted, plan in plans.items():
        config = load_config("fake-smoke", [f"training.router_aux_loss={str(wanted).lower()}"])
        plan_routers(config.config, plan, facts)
    assert plans[True].fits is fits
    assert plans[False].fits, "the remedy works"


def test_a_loss_that_never_returns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.plan.losses.TRIAL_SECONDS", 0.2)
    (refused,) = planned(f"{BROKEN}:Hanging").of("problem")
    assert "takes more than 0.2 s" in refused.found

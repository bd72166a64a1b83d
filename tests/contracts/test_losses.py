"""What every loss promises, found by family: finite, the right way round, blind to padding and order, cheap to name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policies.objectives.loss import (
    LOSSES,
    Loss,
    PairLoss,
    PairTensors,
    ReferencedLoss,
    StepTensors,
    SupervisedLoss,
    SupervisedTensors,
    UnpairedLoss,
    UnpairedTensors,
)
from tests.parity.vectors import weights_for
from tests.support.heavy_imports import loaded_by
from tests.support.scored_batches import pair_tensors
from tests.support.training_cases import make_loss

NAMES = sorted(name for name, where in LOSSES.members().items() if where.startswith("policies."))
PAIR_NAMES = [name for name in NAMES if issubclass(LOSSES.resolve(name), PairLoss)]
UNPAIRED_NAMES = [name for name in NAMES if issubclass(LOSSES.resolve(name), UnpairedLoss)]
REFERENCED = [name for name in NAMES if issubclass(LOSSES.resolve(name), ReferencedLoss)]
SUPERVISED_NAMES = [name for name in NAMES if issubclass(LOSSES.resolve(name), SupervisedLoss)]
ACROSS_ROWS = {"aot", "aot_unpaired"}
"""Losses that compare the rows of an optimizer step with each other."""


def values(loss: Loss, a: Tensor, b: Tensor) -> Tensor:
    """Loss at log-ratios a (chosen, or desirable) and b (rejected, or undesirable).

    A supervised loss reads a alone, as log-probs; a step loss finds one judged step in each example, half of it.
    """
    zeros = torch.zeros_like(a)
    if isinstance(loss, SupervisedLoss):
        return loss.per_example(SupervisedTensors(a, zeros + 4, torch.tensor(4.0)))
    if isinstance(loss, PairLoss):
        mean_length = torch.tensor(4.0)
        return loss.per_pair(
            PairTensors(a, b, zeros, zeros, zeros + 4, zeros + 3, mean_chosen_length=mean_length)
        )
    assert isinstance(loss, UnpairedLoss)
    ratios = torch.cat([a, b])
    desirable = torch.arange(len(ratios)) < len(a)
    steps = StepTensors(
        logratios=ratios / 2,
        rows=torch.arange(len(ratios)),
        desirable=desirable,
        weights=torch.ones(len(ratios)),
        kl=torch.tensor(0.05),
        mean_per_example=torch.tensor(1.0),
    )
    examples = UnpairedTensors(
        ratios, torch.zeros_like(ratios), desirable, torch.tensor(0.1), steps
    )
    return loss.weighted(examples, (1.0, 1.0))


@pytest.mark.parametrize("extreme", [60.0, -60.0, 300.0, -300.0])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_finite_far_from_the_reference(name: str, extreme: float) -> None:
    loss = make_loss(name)
    beta = loss.config.beta if isinstance(loss, ReferencedLoss) else 1.0
    distance = extreme / beta / 2
    a = torch.tensor([distance], requires_grad=True)
    b = torch.tensor([-distance], requires_grad=True)
    result = values(loss, a, b)
    result.sum().backward()
    assert result.dtype == torch.float32
    assert bool(torch.isfinite(result).all())
    assert all(x.grad is None or bool(torch.isfinite(x.grad).all()) for x in (a, b))


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize(
    "name", ["dpo", "ipo", "hinge", "robust", "exo_pair", "discopop", "sigmoid_norm"]
)
def test_f_divergences_are_finite_far_from_the_reference(name: str, divergence: str) -> None:
    loss = make_loss(name, f_divergence=divergence)
    for distance in (300.0, -300.0):
        a = torch.tensor([distance], requires_grad=True)
        result = values(loss, a, torch.tensor([-distance]))
        result.sum().backward()
        assert a.grad is not None
        if (
            name != "ipo"
        ):  # squares an exponential: too large for float32, which the engine reports as divergence
            assert bool(torch.isfinite(result).all())
            assert bool(torch.isfinite(a.grad).all())


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_favours_the_chosen_side_near_the_reference(name: str) -> None:
    # DiscoPOP has a bump around a margin of 0, where it pushes the wrong way; it is right for misordered pairs.
    shift = 40.0 if name == "discopop" else 0.0
    a = torch.tensor([0.3 - shift, 0.1 - shift], requires_grad=True)
    b = torch.tensor([0.2, -0.1], requires_grad=True)
    values(make_loss(name), a, b).mean().backward()
    assert a.grad is not None
    rejected = torch.zeros(2) if b.grad is None else b.grad
    assert bool((a.grad < rejected).all()), "more of the chosen, relative to the rejected"
    if name == "apo_down":
        assert bool((rejected > 0).all())  # both fall, the rejected more
    else:
        assert bool((a.grad < 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_autograd_agrees_with_finite_differences(name: str) -> None:
    loss = make_loss(name)
    start = torch.tensor([0.7, -1.3, 0.4, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: values(loss, x[:2], x[2:]).sum(), [start])


@pytest.mark.parametrize("name", PAIR_NAMES)
def test_padding_and_row_order_do_not_change_the_mean(name: str) -> None:
    loss = make_loss(name)
    assert isinstance(loss, PairLoss)
    log_probs = -torch.arange(1.0, 13.0).view(4, 3) / 6
    scored = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1]])
    references = torch.tensor([-1.5, -2.5]), torch.tensor([-3.0, -4.0])

    def mean(log_probs: Tensor, scored: Tensor, *references: Tensor) -> Tensor:
        weights = weights_for(loss, scored)
        pairs = pair_tensors(log_probs * scored, scored, *references, weights=weights)
        return loss.per_pair(pairs).mean()

    plain = mean(log_probs, scored, *references)
    wide = torch.nn.functional.pad(scored, (0, 4))
    padded = mean(torch.nn.functional.pad(log_probs, (0, 4)), wide, *references)
    order = [1, 0, 3, 2]
    swapped = mean(log_probs[order], scored[order], *(r.flip(0) for r in references))
    torch.testing.assert_close(padded, plain)
    torch.testing.assert_close(swapped, plain)


@pytest.mark.parametrize("name", sorted(set(NAMES) - ACROSS_ROWS))
def test_the_loss_of_an_example_does_not_depend_on_its_neighbours(name: str) -> None:
    loss = make_loss(name)
    a, b = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 0.7, -0.4])
    together = values(loss, a, b)
    if name in SUPERVISED_NAMES:
        torch.testing.assert_close(together, torch.cat([values(loss, x, b) for x in a.split(1)]))
        return
    alone = torch.stack([values(loss, a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone.T.reshape(-1))


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_compares_rows_says_so(name: str) -> None:
    assert make_loss(name).across_rows == (name in ACROSS_ROWS)


@pytest.mark.parametrize("name", NAMES)
def test_the_config_survives_json_and_the_loss_has_a_trl_spelling(name: str) -> None:
    config: Any = LOSSES.parse({"type": name})
    assert LOSSES.parse(config.model_dump(mode="json")) == config
    assert type(config).model_validate_json(config.model_dump_json()) == config
    assert isinstance(make_loss(name).trl().loss_type, str)
    assert make_loss(name).__doc__


def test_importing_all_losses_imports_nothing_heavy() -> None:
    code = (
        "from policies.objectives.loss import LOSSES\n"
        "from policies.objectives.reference import REFERENCES\n"
        "from workers.training.engine import TRAINING_ENGINES\n"
        "for family in (LOSSES, REFERENCES, TRAINING_ENGINES):\n"
        "    for name in family.members(): family.resolve(name)"
    )
    heavy = ("torch", "trl", "transformers", "numpy", "peft", "safetensors")
    assert loaded_by(code, heavy) == []

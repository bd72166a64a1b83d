"""The learning rate by step: no step without one, a warm-up that fits short rounds, then the chosen schedule."""

from __future__ import annotations

import math

import pytest

from workers.training.engine import TrainingOptions
from workers.training.schedule import rate_factor, warmup_steps


def factors(num_steps: int, **options: object) -> list[float]:
    settings = TrainingOptions.model_validate(options)
    return [rate_factor(settings, num_steps, step) for step in range(num_steps)]


def test_the_rate_rises_from_the_first_step_on_and_none_is_lost() -> None:
    assert factors(8, warmup_fraction=0.375, warmup_min_steps=0) == [0.25, 0.5, 0.75, *[1.0] * 5]


@pytest.mark.parametrize(
    ("num_steps", "wanted"), [(1, 0), (2, 1), (5, 2), (6, 3), (30, 3), (40, 4)]
)
def test_by_default_a_short_round_warms_up_too(num_steps: int, wanted: int) -> None:
    assert warmup_steps(TrainingOptions(), num_steps) == wanted
    assert min(factors(num_steps)) > 0
    assert factors(num_steps)[-1] == 1.0


def test_no_fraction_is_no_warm_up() -> None:
    assert factors(6, warmup_fraction=0) == [1.0] * 6


def test_a_linear_schedule_falls_in_equal_parts_and_a_cosine_by_half_a_wave() -> None:
    assert factors(4, warmup_fraction=0, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    half = [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert factors(4, warmup_fraction=0, schedule="cosine") == pytest.approx(half)

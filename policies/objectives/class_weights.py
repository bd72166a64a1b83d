"""Weights of two classes of examples: numbers, or balanced by their counts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from policies.base.bounds import MAX_COEFFICIENT

ClassWeight = Annotated[float, Field(ge=0, le=MAX_COEFFICIENT)] | Literal["auto"]


def balanced_weights(
    desirable_weight: ClassWeight,
    undesirable_weight: ClassWeight,
    num_desirable: int,
    num_undesirable: int,
) -> tuple[float, float]:
    """Weights (lambda_D, lambda_U) of two classes with these counts.

    `auto` keeps lambda_D n_D / (lambda_U n_U) within [1, 4/3] (arXiv 2402.01306, section 4.3): nothing changes
    inside, the smaller class is raised to the nearer end outside, the other stays at 1.

    Example: 10 desirable and 100 undesirable give (10.0, 1.0); 40 and 10 give (1.0, 3.0).
    """
    auto_desirable, auto_undesirable = desirable_weight == "auto", undesirable_weight == "auto"
    desirable = 1.0 if auto_desirable else float(desirable_weight)
    undesirable = 1.0 if auto_undesirable else float(undesirable_weight)
    if num_desirable == 0 or num_undesirable == 0:  # one class alone: there is nothing to balance
        return desirable, undesirable
    ratio = desirable * num_desirable / (undesirable * num_undesirable)
    wanted = min(max(ratio, 1.0), 4.0 / 3.0)
    raise_desirable = wanted > ratio if auto_desirable and auto_undesirable else auto_desirable
    if raise_desirable:
        return desirable * wanted / ratio, undesirable
    if auto_undesirable:
        return desirable, undesirable * ratio / wanted
    return desirable, undesirable

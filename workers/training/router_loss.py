"""The load-balancing loss of a mixture of experts' routers: added with `training.router_aux_loss`, else never.

One rule for both ways in which a step's loss is computed, TRL's and ours: the model's own function and coefficient.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from policies.base.errors import TrainingError, explain

if TYPE_CHECKING:
    from torch import Tensor


def set_router_loss(model: Any, *, wanted: bool) -> None:
    """Make a loaded model record its routers' logits, or not, whatever its config says.

    Raises:
        TrainingError: the loss is wanted and the model has none, or none that counts.
    """
    config = model.config.get_text_config()
    if wanted:
        refused = without_router_loss(config)
        if refused is None and not hasattr(
            sys.modules[type(model).__module__], "load_balancing_loss_func"
        ):
            refused = f"{type(model).__name__} has no function for it"
        if refused is not None:
            raise TrainingError(
                explain(
                    f"the model has no router loss to add: {refused}",
                    value=True,
                    where="training.router_aux_loss",
                    fix="set it to false",
                )
            )
    if hasattr(config, "output_router_logits"):
        config.output_router_logits = wanted


def without_router_loss(config: Any) -> str | None:
    """Tell why a model of this config of transformers has no router loss to add, or None."""
    if not hasattr(config, "output_router_logits"):
        return (
            f"{config.model_type} is no mixture of experts that transformers knows the routers of"
        )
    if not getattr(config, "router_aux_loss_coef", 0.0):
        return "its config gives router_aux_loss_coef 0, or none"
    return None


@contextmanager
def routers_recorded(model: Any) -> Iterator[list[Any]]:
    """The routers' logits of each pass through the model's layers in the body; empty where none are recorded."""
    recorded: list[Any] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        logits = getattr(output, "router_logits", None)
        if logits is not None:
            recorded.append(logits)

    hook = model.base_model.register_forward_hook(keep)
    try:
        yield recorded
    finally:
        hook.remove()


def router_loss(model: Any, recorded: list[Any], attention_mask: Tensor) -> Tensor | None:
    """The model's load-balancing loss, before its coefficient; None where no logits were recorded. []

    arXiv 2101.03961 eq. 4-6, in the model's own implementation.
    """
    if not recorded:
        return None
    function = cast(Any, sys.modules[type(model).__module__]).load_balancing_loss_func
    loss: Tensor = function(
        recorded[-1], model.num_experts, model.num_experts_per_tok, attention_mask
    )
    return loss

"""Noise that a model adds while it trains (dropout, router jitter, dropped layers): off before it loads, and checked.

The reference is the policy that sampled, so an update has to begin at a log-ratio of exactly 0. Dropout is mostly no
module that could be found: models hand a number of their config to a function.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from policies.base.errors import TrainingError, explain

if TYPE_CHECKING:
    from torch import Tensor

_NOISE = re.compile(
    r"\w*(drop_?out|pdrop|layer_?drop|drop_?(path|att)|drop_(connect_)?(rate|prob)|path_drop|stochastic_depth|jitter)\w*",
    re.IGNORECASE,
)
"""Names under which configs of models and their parts keep rates of noise."""
_READ_IN_EVALUATION = {("phimoe", "router_jitter_noise")}
"""Model types with a field of such a name that shapes their answers in evaluation too: a part of the model, kept."""
_PROBE_TOKENS = 64
_PROBE_PASSES = 4
"""Passes in training mode: a layer that is dropped now and then may stand in one of them."""
_LARGEST_GAP = 1e-3
"""Nats by which two passes over the same tokens may differ and still be rounding."""


def silence(config: Any) -> dict[str, float]:
    """Set every rate of noise in a model's config, nested ones included, to 0; returns what was set to what.

    Only the config of the loaded model changes: the published folder keeps the file with its owner's values.
    """
    return dict(_silenced(config, ""))


def _silenced(config: Any, prefix: str) -> Iterator[tuple[str, float]]:
    kind = getattr(config, "model_type", "")
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and value is not config:
            yield from _silenced(value, f"{prefix}{name}.")
        elif isinstance(value, dict):
            yield from _silenced_dict(value, f"{prefix}{name}.")
        elif _is_rate(name, value) and (kind, name) not in _READ_IN_EVALUATION:
            setattr(config, name, type(value)(0))
            yield f"{prefix}{name}", float(value)


def _silenced_dict(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in list(values.items()):
        if isinstance(value, dict):
            yield from _silenced_dict(value, f"{prefix}{name}.")
        elif _is_rate(name, value):
            values[name] = type(value)(0)
            yield f"{prefix}{name}", float(value)


def _is_rate(name: str, value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and value != 0 and _NOISE.fullmatch(name) is not None


def silence_modules(model: Any) -> None:
    """Set the rates that modules keep, where code of the model does not take them from its config."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            kind = getattr(getattr(module, "config", None), "model_type", None)
            kind = kind or getattr(model.config, "model_type", "")
            if _is_rate(name, value) and (kind, name) not in _READ_IN_EVALUATION:
                setattr(module, name, type(value)(0))
        if "Dropout" in type(module).__name__ and isinstance(getattr(module, "p", None), float):
            module.p = 0.0


def check_quiet(model: Any, token_ids: Sequence[int], *, precision: str = "fp32") -> None:
    """Refuse a model that gives other log-probs in training than in evaluation mode.

    Args:
        model: as it was loaded; left in the mode that it came in.
        token_ids: a sequence that it may read; its beginning is used. [T]
        precision: of the passes, as in training.

    Raises:
        TrainingError: names the first module whose output differs, and the fields of the config that look like it.
    """
    import torch

    ids = torch.tensor([list(token_ids[:_PROBE_TOKENS])], device=next(model.parameters()).device)
    was_training = model.training
    autocast = torch.autocast(ids.device.type, torch.bfloat16, enabled=precision == "bf16")
    try:
        with torch.no_grad(), autocast, torch.random.fork_rng(devices=_cuda_devices(ids)):
            quiet = _log_probs(model.eval(), ids)
            gap = max(
                float((_log_probs(model.train(), ids) - quiet).abs().max())
                for _ in range(_PROBE_PASSES)
            )
            if gap <= _LARGEST_GAP:
                return
            module = _first_that_differs(model, ids)
    finally:
        model.train(was_training)
    fields = _looks_like_noise(model.config)
    kind = getattr(model.config, "model_type", "unknown type")
    raise TrainingError(
        explain(
            f"the model is noisy in training mode: log-probs of one sequence differ by up to {gap:.2g} nats from "
            f"evaluation mode, first in {module}. An update would not begin at the policy that sampled",
            value=fields or type(model).__name__,
            where=f"policy.model: its config.json, or the code of {kind}",
            fix=f"set {' and '.join(fields)} to 0 in its config.json"
            if fields
            else f"choose another policy.model: no setting of {kind} turns its noise off",
        )
    )


def _cuda_devices(ids: Tensor) -> list[Any]:
    return [ids.device] if ids.device.type == "cuda" else []


def _log_probs(model: Any, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    log_probs: Tensor = logits.log_softmax(dim=-1).gather(1, ids[0, 1:, None])
    return log_probs


def _first_that_differs(model: Any, ids: Tensor) -> str:
    """Name and class of the innermost module that ends first with another output in training mode."""
    quiet = _outputs(model.eval(), ids)
    for _ in range(_PROBE_PASSES):
        noisy = _outputs(model.train(), ids)
        for name, value in noisy.items():
            if name in quiet and (
                value.shape != quiet[name].shape
                or float((value - quiet[name]).abs().max()) > _LARGEST_GAP
            ):
                return f"{name or 'the model'} ({type(model.get_submodule(name)).__name__})"
    return type(model).__name__


def _outputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Return what each module gives, its tensors in one row, in the order in which they end."""
    import torch

    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            parts = output if isinstance(output, tuple) else (output,)
            tensors = [p.detach().float().flatten() for p in parts if isinstance(p, torch.Tensor)]
            if tensors:
                found.setdefault(name, torch.cat(tensors))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    try:
        _log_probs(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _looks_like_noise(config: Any) -> dict[str, float]:
    """Fields of the config that may be noise under a name that `silence` does not know, for the message."""
    kind = getattr(config, "model_type", "")
    return {
        name: value
        for part in {id(c): c for c in (config, config.get_text_config())}.values()
        for name, value in vars(part).items()
        if isinstance(value, float)
        and value
        and re.search("noise|drop|jitter|stochastic", name)
        and (kind, name) not in _READ_IN_EVALUATION
    }

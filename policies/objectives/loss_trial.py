"""One microbatch through a loss before a run: each row must get a finite number with a gradient, and the same again.

As a program (`python -m policies.objectives.loss_trial`) it reads a loss from stdin, `{"reference": ..., "config":
{...}}`, and answers `{"refused": null}` or with the reason; so a user's code and torch stay out of the process that
asks.
"""

from __future__ import annotations

import inspect
import json
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from policies.base.errors import ConfigurationError, boundary, explain
from policies.examples.kind import TokenSequence, TokenSpan
from policies.objectives.loss import Loss, ScoredBatch, StepTensors

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 4
_DISTANCES = (0.0, 1.0, 6.0)
"""Log-ratios that are tried, in nats: an update begins at 0, and single rows reach several."""


@dataclass
class _Trial:
    """One batch, and the log-probs that the gradient of its losses must reach."""

    batch: ScoredBatch
    leaves: list[Tensor]


def refused_because(loss: Loss) -> str | None:
    """Tell why a loss cannot be trained with, or None; tried on synthetic log-probs at and around the reference."""
    learns = False
    for distance in _DISTANCES:
        try:
            with boundary(ConfigurationError, "the loss fails on a microbatch"):
                trial = _trial(loss, distance)
                values = loss.losses(trial.batch)
                reason = _shape(loss, values) or _numbers(loss, trial, values, distance)
                if reason is None and distance == 1.0:
                    reason = _again(loss, trial, values) or _alone(loss, trial, values)
        except ConfigurationError as error:  # whatever a formula raises is the answer
            return _raised(loss, error.__cause__ or error)
        if reason is not None:
            return reason
        learns = learns or any(
            leaf.grad is not None and bool(leaf.grad.any()) for leaf in trial.leaves
        )
    if learns:
        return None
    return _reason(
        loss,
        "the loss has no gradient in the policy's log-probs: nothing would be learned",
        0.0,
        "compute it from the log-probs that it is given, without detach(), item() or no_grad()",
    )


def _trial(loss: Loss, distance: float) -> _Trial:
    import torch

    _check_token_weights(loss)
    slots = range(loss.kind.fewest_sequences)
    ratios = distance * torch.tensor([1.0, -0.5, 0.25, -1.5])
    reference = torch.tensor([-12.0, -30.0, -7.0, -55.0])
    lengths = torch.tensor([9.0, 21.0, 5.0, 40.0])
    desirable = torch.tensor([True, False, False, True])
    apart = [ratios if slot == 0 else -0.5 * slot * ratios.flip(0) for slot in slots]
    references = torch.cat([reference - 4 * slot for slot in slots])
    logps = (references + torch.cat(apart)).requires_grad_()
    step_ratios = (ratios / 2).requires_grad_()
    steps = StepTensors(
        logratios=step_ratios,
        rows=torch.arange(_ROWS),
        desirable=desirable,
        weights=torch.ones(_ROWS),
        kl=torch.tensor(0.1),
        mean_per_example=torch.tensor(1.0),
    )
    alignment = torch.tensor([-1.0, -0.5, -1.5, -0.25]).repeat(len(slots))
    batch = ScoredBatch(
        logps=logps,
        references=dict.fromkeys(loss.reference_names, references),
        lengths=torch.cat([lengths.flip(0) if slot % 2 else lengths for slot in slots]),
        owners=torch.arange(_ROWS).repeat(len(slots)),
        sizes=(_ROWS,) * len(slots),
        weights=torch.ones(_ROWS),
        kl=torch.tensor(0.1),
        mean_lengths=lengths.mean().repeat(len(slots)),
        values={n: torch.tensor([1.0, 0.75, 0.5, 1.0]) for n in loss.kind.number_names()},
        labels=desirable,
        scores=torch.cat([1.0 / (1 + slot) + 0.0 * reference for slot in slots]),
        alignment=alignment if loss.needs_alignment else None,
        steps=steps if loss.reads_steps else None,
        class_weights=loss.class_weights(2, 2),
    )
    return _Trial(batch, [logps, step_ratios])


def _check_token_weights(loss: Loss) -> None:
    mask = (0, 0, 1, 1, 0, 1)
    sequence = TokenSequence(
        trajectory_id="tried",
        policy_version=0,
        token_ids=(5, 6, 7, 8, 9, 10),
        loss_mask=mask,
        logprobs=(0.0,) * len(mask),
        turns=(TokenSpan(start=2, end=4), TokenSpan(start=5, end=6)),
    )
    other = sequence.model_copy(update={"token_ids": (5, 6, 7, 11, 9, 10)})
    sequences = [sequence, other, *[other] * loss.kind.fewest_sequences]
    for weights in loss.sequence_weights(sequences[: loss.kind.fewest_sequences]) or ():
        if len([float(w) for w in weights]) != sum(mask):
            raise ValueError(
                f"token_weights gave {len(weights)} weights for {sum(mask)} scored tokens"
            )


def _shape(loss: Loss, values: Any) -> str | None:
    import torch

    if isinstance(values, torch.Tensor) and values.shape == (_ROWS,) and values.is_floating_point():
        return None
    got = f"shape {list(values.shape)}" if hasattr(values, "shape") else type(values).__name__
    return _reason(
        loss,
        f"the formula must give one number for each row, shape [{_ROWS}] for {_ROWS} rows: they are weighed and "
        "averaged afterwards",
        got,
        "return the loss of each row, without .mean() or .sum() over them",
    )


def _numbers(loss: Loss, trial: _Trial, values: Tensor, distance: float) -> str | None:
    where = "at the reference" if distance == 0 else f"{distance:g} nats from the reference"
    if not bool(values.isfinite().all()):
        found = values.detach().tolist()
        return _reason(
            loss, f"the loss is not finite {where}", found, "keep it finite there, e.g. clamp()"
        )
    if not values.requires_grad:
        return None  # told of all distances together
    values.sum().backward()
    for leaf in trial.leaves:
        if leaf.grad is not None and not bool(leaf.grad.isfinite().all()):
            return _reason(
                loss,
                f"the gradient is not finite {where}",
                leaf.grad.tolist(),
                "keep it finite there, e.g. clamp() before sqrt(), log() or exp()",
            )
    return None


def _again(loss: Loss, trial: _Trial, values: Tensor) -> str | None:
    import torch

    again = loss.losses(trial.batch)
    if torch.allclose(again, values, rtol=1e-5, atol=1e-6):
        return None
    return _reason(
        loss,
        "the same rows get another loss the second time: it keeps something between calls, or draws random numbers",
        [values.detach().tolist(), again.detach().tolist()],
        "make it a function of the rows and the config alone",
    )


def _alone(loss: Loss, trial: _Trial, values: Tensor) -> str | None:
    """A row's loss must not change with the rows beside it: microbatches and workers would change the objective."""
    import torch

    if loss.across_rows:
        return None
    alone = [loss.losses(trial.batch.example(i)).reshape(-1) for i in range(_ROWS)]
    if torch.allclose(torch.cat(alone), values, rtol=1e-4, atol=1e-5):
        return None
    return _reason(
        loss,
        "the loss of a row depends on the rows beside it, so micro_batch_size and workers would change the objective",
        torch.cat(alone).tolist(),
        "write `across_rows = True` in the class: the loss is then always given the rows of a whole optimizer step",
    )


def _raised(loss: Loss, error: BaseException) -> str:
    home = _file_of(loss)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == home]
    place = (own or frames)[-1]
    return explain(
        "the loss fails on a microbatch",
        value=f"{type(error).__name__}: {error}",
        where=f"training.loss ({place.filename}, line {place.lineno})",
        fix="mend the formula; `per_pair` (or `per_example`) gives the loss of each row from the tensors it is given",
    )


def _reason(loss: Loss, what: str, value: object, fix: str) -> str:
    name = next(n for n in ("per_pair", "per_example", "losses") if hasattr(loss, n))
    code = inspect.unwrap(getattr(type(loss), name)).__code__
    where = f"training.loss ({code.co_filename}, line {code.co_firstlineno})"
    return explain(what, value=value, where=where, fix=fix)


def _file_of(loss: Loss) -> str:
    return str(inspect.getsourcefile(type(loss)) or "")


def main() -> None:
    """Answer for the loss on stdin."""
    from policies.base.component import create, load_object

    asked = json.loads(sys.stdin.read())
    answer = sys.stdout
    sys.stdout = sys.stderr  # a formula that prints must not spoil the answer
    owner = cast("type[Loss]", load_object(asked["reference"]))
    try:
        with boundary(ConfigurationError, "the loss cannot be made"):
            loss: Loss = create(owner.Config.model_validate(asked["config"]))
        refused = refused_because(loss)
    except ConfigurationError as error:
        refused = explain(
            "the loss cannot be made",
            value=str(error.__cause__ or error),
            where=f"training.loss ({inspect.getsourcefile(owner)})",
            fix="mend its __init__, which takes the config alone",
        )
    answer.write(json.dumps({"refused": refused}) + "\n")


if __name__ == "__main__":
    main()

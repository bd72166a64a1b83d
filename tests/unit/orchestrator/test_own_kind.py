"""A kind of example of a user's own: a record, a builder and a loss in three files, and nothing of ours is edited.

Ranked lists of answers with the Plackett-Luce form of DPO (arXiv 2305.18290, appendix A.3, eq. 20).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.folder import RunFolder
from policies.examples.kind import Example
from policies.objectives.loss import Loss
from policies.objectives.reference import ReferencePart, ReferencePlan
from policies.storage.artifacts import read_marker
from tests.support.fake_runs import fake_tree
from tests.support.step_gradients import gradients_kept
from tests.support.training_cases import (
    log_of,
    make_engine,
    make_job,
    make_loss,
    sequence,
    version,
    write_tiny_model,
)

RANKED = '''
"""Ranked lists of answers."""

from typing import ClassVar

from policies.examples.kinds import Example, TokenSequence


class Ranked(Example):
    """Answers to one prompt, the best first."""

    kind_name: ClassVar[str] = "ranked"
    counted_as: ClassVar[str] = "rankings"
    fewest_sequences: ClassVar[int] = 2

    answers: tuple[TokenSequence, ...]
    answer_scores: tuple[float, ...]
    spread: float

    def scores(self):
        return self.answer_scores

    def counts(self):
        return {"rankings": 1, "ranked_answers": len(self.answers)}
'''

RANKING = '''
"""One ranking of each prompt with a contrast."""

from policies.examples.builder import Built, PreferenceBuilder, beats
from policies.examples.kinds import TokenSequence
from ranked import Ranked


class Ranking(PreferenceBuilder):
    """Ranks up to `most` answers by score; among equals the earlier sample stands first."""

    kind = Ranked

    class Config(PreferenceBuilder.Config):
        """Settings."""

        most: int = 3
        """Longest ranking."""

    def build(self, group, rng):
        built = Built()
        ranked = sorted(self.candidates(group, built), key=lambda c: -c.score)
        ranked = [*ranked[: self.config.most - 1], *ranked[self.config.most - 1 :][-1:]]
        if len(ranked) < 2 or not beats(ranked[0].score, ranked[-1].score):
            built.dropped["no_contrast"] += len(ranked)
            return built
        built.examples.append(
            Ranked(
                id=">".join(c.trajectory.id for c in ranked),
                prompt_id=group.prompt.id,
                answers=tuple(TokenSequence.of(c.trajectory) for c in ranked),
                answer_scores=tuple(c.score for c in ranked),
                spread=ranked[0].score - ranked[-1].score,
            )
        )
        return built
'''

PLACKETT_LUCE = '''
"""DPO under the Plackett-Luce model."""

from policies.objectives.loss import ReferencedLoss
from ranked import Ranked


class PlackettLuce(ReferencedLoss):
    """-sum_k log(exp(beta r_k) / sum_{j >= k} exp(beta r_j)), arXiv 2305.18290 eq. 20."""

    kind = Ranked

    def losses(self, batch):
        rewards = batch.table(self.config.beta * batch.logratios(), -1e9)
        totals = rewards.flip(1).logcumsumexp(dim=1).flip(1)
        there = batch.table(batch.lengths, 0) > 0
        return ((totals - rewards) * there).sum(dim=1)
'''


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of a user's with the three files."""
    for name, text in (("ranked", RANKED), ("ranking", RANKING), ("plackett_luce", PLACKETT_LUCE)):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    return tmp_path


def config_file(home: Path, **changes: Any) -> Path:
    tree = fake_tree(
        home,
        preferences={"type": f"{home}/ranking.py:Ranking"},
        training={
            "engine": {"type": "fake"},
            "loss": {"type": f"{home}/plackett_luce.py:PlackettLuce", "beta": 0.5},
        },
    )
    path = home / "config.yaml"
    path.write_text(json.dumps(tree | changes), encoding="utf-8")
    return path


def pawl(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_a_kind_of_ones_own_runs_and_is_verified_shown_and_traced(home: Path) -> None:
    code, said = pawl("run", config_file(home), "--runs-dir", home / "runs", "--name", "mine")
    assert code == 0, said
    folder = RunFolder(home / "runs" / "mine")
    for index in (1, 2):
        marker = read_marker(folder.round(index).shards("examples")[0])
        assert marker is not None
        assert marker.kind == "ranked"
    report = audit(folder, deep=True)
    assert [check for check in report if check.verdict == "wrong"] == []

    code, said = pawl("show", folder.path, "--round", 1, "--pairs", "--json")
    assert code == 0, said
    shown = json.loads(said)
    first = next(row for row in (shown if isinstance(shown, list) else shown["examples"]))
    assert {"answers_1", "answers_2", "spread"} <= first.keys()
    assert pawl("show", folder.path, "--round", 1, "--pairs")[0] == 0

    code, said = pawl("trace", folder.path, first["id"], "--json")
    assert code == 0, said
    traced = json.loads(said)
    assert traced["kind"] == "ranked"
    assert [t["id"] for t in traced["trajectories"]] == first["id"].split(">")

    code, said = pawl("status", folder.path, "--json")
    trained = [r["metrics"]["train/rankings"] for r in json.loads(said)["rounds"] if r["round"]]
    assert all(count > 0 for count in trained)


def test_a_loss_and_a_builder_of_different_kinds_are_refused(home: Path) -> None:
    code, said = pawl("validate", config_file(home, preferences={"type": "right_vs_wrong"}))
    assert code == 2
    assert "learns from ranked examples" in said
    assert "makes pair examples" in said


def test_a_kind_under_the_name_of_one_that_ships_is_refused(home: Path) -> None:
    (home / "ranked.py").write_text(RANKED.replace('"ranked"', '"pair"'), encoding="utf-8")
    code, said = pawl("validate", config_file(home))
    assert code == 2
    assert "a kind of example needs a name of its own" in said


def rankings(loss: Loss) -> list[Example]:
    """Lists of three and of two answers."""
    sizes, kind = (3, 2, 3, 2, 3), cast(Any, loss.kind)
    return [
        kind(
            id=f"r{i}",
            prompt_id=f"p{i}",
            answers=tuple(sequence(f"p{i}", k) for k in range(size)),
            answer_scores=tuple(float(-k) for k in range(size)),
            spread=float(size - 1),
            weight=1.0 + i % 2,
        )
        for i, size in enumerate(sizes)
    ]


def log_prob(model: Any, ids: tuple[int, ...], mask: tuple[int, ...]) -> Tensor:
    """Log-prob of the scored tokens of one sequence, from the whole matrix of its logits."""
    values = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    scored = [(i - 1, token) for i, token in enumerate(ids) if mask[i]]
    return torch.stack([values[i, token] for i, token in scored]).sum()


def by_hand(examples: list[Example], policy: Any, reference: Any, beta: float) -> Tensor:
    """Weighted mean of -log of the product over places of exp(beta r_k) / sum of those that are left."""
    losses = []
    for example in examples:
        ratios = []
        for one in example.sequences():
            with torch.no_grad():
                base = log_prob(reference, one.token_ids, one.loss_mask)
            ratios.append(beta * (log_prob(policy, one.token_ids, one.loss_mask) - base))
        likelihood = torch.ones(())
        for k in range(len(ratios)):
            likelihood = likelihood * torch.stack(ratios[k:]).softmax(dim=0)[0]
        losses.append(-example.weight * likelihood.log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("micro", [None, 1])
def test_the_loss_and_its_gradient_are_those_of_the_formula(home: Path, micro: int | None) -> None:
    from transformers import AutoModelForCausalLM

    loss = make_loss(f"{home}/plackett_luce.py:PlackettLuce", beta=0.5)
    examples = rankings(loss)
    policy, other = (write_tiny_model(home / f"model{seed}", seed=seed) for seed in (0, 1))
    job = make_job(
        version(policy),
        home,
        reference=ReferencePlan(parts=(ReferencePart(version=1, weight=1.0),)),
        reference_versions=(version(other, number=1),),
    )
    options = {"batch_size": 5, "micro_batch_size": micro, "max_grad_norm": 1e9}
    engine = make_engine("trl", loss, None, learning_rate=1e-7, **options)
    with gradients_kept() as kept:
        outcome = engine.update(job, examples)
    assert outcome.metrics["train/rankings"] == 5

    mine, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (policy, other))
    expected = by_hand(examples, mine, reference, 0.5)
    expected.backward()
    assert log_of(job)[0]["train/loss"] == pytest.approx(expected.item(), rel=1e-4)
    wanted = {name: p.grad for name, p in mine.named_parameters()}
    assert kept[0].keys() == wanted.keys()
    largest = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in wanted.items():
        assert float((kept[0][name] - gradient).abs().max()) <= 2e-4 * largest, name

"""`from pawl import ...`: what a plug-in needs is there, the same objects that Pawl uses, and light to import."""

from __future__ import annotations

from pathlib import Path

import pawl
from orchestrator.config.families import FAMILIES
from orchestrator.driver.launch import run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.folder import RunFolder
from tests.support.fake_runs import fake_config
from tests.support.heavy_imports import loaded_by

HEAVY = ("ray", "vllm", "torch", "mlflow", "trl", "transformers", "datasets")
VERIFIER = '''
"""Right when the completion ends with the prompt's answer."""

from pawl import Prompt, Trajectory, Verdict, Verifier


class EndsWith(Verifier):
    """Compares the end of the text."""

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        right = trajectory.completion.rstrip(" .").endswith(str(prompt.answer))
        return self.scored(trajectory, float(right))
'''


def test_the_base_of_every_component_family_can_be_had_from_pawl() -> None:
    for family in FAMILIES:
        name = family.base.__name__
        assert getattr(pawl, name, None) is family.base, name
        assert name in pawl.__all__


def test_pawl_offers_what_it_says_in_order_and_nothing_heavy() -> None:
    assert pawl.__all__ == sorted(pawl.__all__)
    assert all(hasattr(pawl, name) for name in pawl.__all__)
    assert loaded_by("import pawl", HEAVY) == []


def test_a_verifier_that_imports_from_pawl_alone_grades_a_run(tmp_path: Path) -> None:
    file = tmp_path / "ends_with.py"
    file.write_text(VERIFIER, encoding="utf-8")
    config = fake_config(tmp_path, verifiers=[{"type": f"{file}:EndsWith"}])
    folder = RunFolder(tmp_path / "run")
    run_experiment(config, folder, source="")
    report = audit(folder)
    assert not [problem for check in report for problem in check.problems]
    assert any("EndsWith" in path.read_text() for path in [folder.config])

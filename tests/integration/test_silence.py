"""A sampler that stops making tokens is found, ended and replaced, long before a shard's time is over; on real Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.state import read_run_events, results_of
from policies.storage.fake_model import write_fake_model

ROOT = Path(__file__).resolve().parents[2]
ENGINE = '''
import time
from pathlib import Path
from workers.rollout.engines.fake import FakeEngine

class HangsOnce(FakeEngine):
    """Answers, but the first call of all never ends."""

    class Config(FakeEngine.Config):
        """Settings."""

        mark: str
        """File that says that it has hung."""

    def generate(self, requests):
        mark = Path(self.config.mark)
        if not mark.exists():
            mark.touch()
            time.sleep(600)
        return super().generate(requests)
'''

DRIVER = """
import json, sys
from pathlib import Path
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.runs.folder import RunFolder

config = RunConfig.model_validate(json.loads(Path(sys.argv[1]).read_text()))
run_experiment(config, RunFolder(Path(sys.argv[2])), source="")
"""


def test_a_sampler_that_hangs_is_shown_by_status_and_replaced(tmp_path: Path) -> None:
    write_fake_model(tmp_path / "model", skill=0.3)
    (tmp_path / "hangs.py").write_text(ENGINE)
    arithmetic = {"type": "arithmetic", "low": 2, "high": 5, "held_out": 3}
    engine = {"type": f"{tmp_path / 'hangs.py'}:HangsOnce", "mark": str(tmp_path / "mark")}
    tree = {
        "rounds": 1,
        "policy": {"model": str(tmp_path / "model")},
        "prompts": {
            "train": arithmetic | {"split": "train"},
            "held_out": arithmetic | {"split": "held_out"},
            "per_round": 4,
        },
        "rollout": {"engine": engine, "samples_per_prompt": 4, "prompts_per_shard": 4},
        "verifiers": [{"type": "numeric_match"}],
        "preferences": {"type": "right_vs_wrong"},
        "training": {"engine": {"type": "fake"}},
        "cluster": {"num_cpus": 2, "silence_timeout_seconds": 6.0},
        "tracking": {"enabled": False},
    }
    (tmp_path / "config.json").write_text(json.dumps(tree))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "orchestrator.cli"]
    child = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "config.json"), str(tmp_path / "r")],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "mark").exists():
            assert child.poll() is None, child.communicate(timeout=10)
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(2.5)
        shown = subprocess.run(
            [*command, "status", str(tmp_path / "r")],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        out, _ = child.communicate(timeout=150)
    finally:
        child.kill()
        child.communicate(timeout=60)
    assert child.returncode == 0, out
    folder = RunFolder(tmp_path / "r")
    assert [result.round for result in results_of(folder)] == [0, 1]
    assert "rollout 0    sample shard-0000" in shown.stdout, shown.stdout + shown.stderr
    events = read_run_events(folder)
    warnings = [str(e.detail["message"]) for e in events if e.kind.value == "warning"]
    assert any("cluster.silence_timeout_seconds" in w for w in warnings), warnings
    assert not folder.activity.exists()

"""`pawl validate` says how rows are read and what is not used, and takes the remedies that its refusals name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from orchestrator.cli.app import app

CONFIG = """
rounds: 1
policy: {{model: {model}}}
prompts:
  train: {{type: jsonl, path: ./train.jsonl}}
  held_out: {{type: jsonl, path: ./held.jsonl}}
  per_round: 1
rollout: {{engine: {{type: fake}}, samples_per_prompt: 2}}
verifiers: [{{type: exact_match}}]
preferences: {{type: right_vs_wrong}}
training: {{engine: {{type: fake}}}}
tracking: {{enabled: false}}
"""
MODEL = Path(__file__).parents[3] / "configs" / "fake-model"


def validate(folder: Path, rows: list[dict[str, Any]], *overrides: str) -> Result:
    (folder / "c.yaml").write_text(CONFIG.format(model=MODEL), encoding="utf-8")
    held_out = {"question": "9 by 9?", "answer": "81 #### 81"}
    for name, content in (("train", rows), ("held", [held_out])):
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return CliRunner().invoke(app, ["validate", str(folder / "c.yaml"), *overrides])


def test_validate_prints_how_rows_are_read_and_what_is_not_used(tmp_path: Path) -> None:
    rows = [{"question": "6 by 12?", "answer": "72 #### 72", "level": 3}]
    done = validate(tmp_path, rows)
    assert done.exit_code == 0, done.output
    line = next(li for li in done.output.splitlines() if li.startswith("prompts.train: format"))
    assert "format gsm8k (chosen from the first rows)" in line
    assert line.endswith("not used: level")
    told = json.loads(validate(tmp_path, rows, "--json").stdout)
    assert line in told["prompts"]
    plain = validate(tmp_path, rows, "prompts.train.format=plain")
    assert "prompts.train: format plain (as configured)" in plain.output


def test_remedies_of_validate_work_as_overrides(tmp_path: Path) -> None:
    weighed = [{"messages": [{"role": "user", "content": "7*8?", "weight": 0}], "answer": "56"}]
    asked = [{"question": "7*8?", "answer": answer} for answer in ("56", "54")]
    begun = [{"role": "user", "content": "7*8?"}, {"role": "assistant", "content": "Well,"}]
    prefilled = [{"prompt": begun, "answer": "56"}]
    for rows in (weighed, asked, prefilled):
        refused = validate(tmp_path, rows)
        assert refused.exit_code == 2
        said = " ".join(refused.output.split())
        remedy = re.search(r"set (prompts\.train\.[\w.]+): (\[[^\]]*\]|\w+)", said, re.IGNORECASE)
        assert remedy is not None, said
        done = validate(tmp_path, rows, f"{remedy[1]}={remedy[2]}")
        assert done.exit_code == 0, done.output

"""Whole runs with a canary for a secret and with hostile text: neither comes out where it should not."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.files import load_config
from orchestrator.runs.report import write_report
from orchestrator.tracking.tags import tracked_run
from policies.base import redaction
from policies.base.plain_text import plain_text
from tests.support.artefacts import holding, pickles_in
from tests.support.bad_rows import Row
from tests.support.run_folders import make_run

CANARY = "canary-5f1b9e77-do-not-print"

LEAKY = '''
import sys
from policies.base.records import Prompt, Trajectory, Verdict
from workers.verify.verifier import Verifier


class Leaky(Verifier):
    """Needs a key, and tells it to everybody when something is wrong."""

    class Config(Verifier.Config):
        api_key: str = ""

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        print(self.config.api_key, file=sys.stderr)
        if trajectory.id.startswith("probe."):
            return self.scored(trajectory, 0.5)  # so that the trouble comes in the run
        if trajectory.sample_index == 1:
            raise RuntimeError(f"401: {self.config.api_key} is not a key")
        if trajectory.sample_index == 2:
            import os

            sys.stderr.flush()
            os._exit(7)
        return self.scored(trajectory, 0.5)
'''
VERIFIERS = "verifiers=[numeric_match, {type: ./leaky.py:Leaky, api_key: '${CANARY_VALUE}'}]"


def invoke(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout + done.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The variable's name says nothing; that the setting is called api_key does.
    monkeypatch.setenv("CANARY_VALUE", CANARY)
    monkeypatch.setenv("CANARY_TOKEN", CANARY[::-1])
    monkeypatch.setattr(redaction, "_known", {})
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Row(0, "leaky", ("", "", "", ""), files={"leaky.py": LEAKY}).spoil(folder)
    return folder


@pytest.mark.parametrize("allowed", [1.0, 0.1], ids=["a-run-that-ends-well", "a-run-that-fails"])
def test_a_secret_is_nowhere_in_a_run_nor_on_the_terminal(here: Path, allowed: float) -> None:
    code, said = invoke(
        "run",
        "c.yaml",
        VERIFIERS,
        f"limits.max_verdict_errors={allowed}",
        "rounds=1",
        "--name",
        "a",
    )
    run = here / "runs" / "a"
    assert code == (0 if allowed == 1.0 else 1), said
    for command in (["status", run], ["show", run, "--feedback"], ["show", run, "--trajectories"]):
        said += invoke(*command)[1]
    said += invoke("validate", "c.yaml", VERIFIERS, "--json")[1]
    said += invoke("plan", "c.yaml", VERIFIERS)[1]
    assert CANARY not in said
    assert "is not a key" in "".join(json.dumps(p.read_text()) for p in run.glob("*.jsonl")) + said
    assert holding(run, CANARY) == []
    config = json.loads((run / "config.json").read_text())
    assert config["verifiers"][1]["api_key"] == "${CANARY_VALUE}"


def test_a_failed_run_with_a_secret_is_resumed_with_the_value_of_today(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        invoke("run", "c.yaml", VERIFIERS, "limits.max_verdict_errors=0.1", "--name", "a")[0] == 1
    )
    monkeypatch.delenv("CANARY_VALUE")
    code, said = invoke("resume", "runs/a")
    assert code == 2
    assert "environment variable CANARY_VALUE is not set" in said
    monkeypatch.setenv("CANARY_VALUE", "rotated-" + CANARY)
    code, said = invoke("resume", "runs/a")
    assert code == 1
    assert "was edited" not in said
    assert "rotated-" not in said
    assert holding(here / "runs" / "a", CANARY) == []


def test_what_is_sent_to_mlflow_holds_no_secret(here: Path) -> None:
    """A run that nobody takes the lines from keeps all of them: they are everything that would be sent."""
    config = load_config("c.yaml", [VERIFIERS]).config
    sent = tracked_run(
        run_id="1" * 32,
        name=f"a-{CANARY}",
        experiment="x",
        config=config.model_dump(mode="json"),
        config_digest="9f",
        model_digest="9f",
        reference="refresh",
        resumed=False,
    )
    assert sent.params["verifiers.1.api_key"] == "***"
    assert CANARY not in json.dumps(sent.params) + json.dumps(sent.tags)


def test_no_file_of_a_run_is_a_pickle(here: Path) -> None:
    assert invoke("run", "c.yaml", "rounds=2", "--name", "a")[0] == 0
    assert len(list((here / "runs" / "a").rglob("*"))) > 30
    assert pickles_in(here / "runs" / "a") == []


def test_the_search_for_pickles_finds_them(tmp_path: Path) -> None:
    (tmp_path / "plain.json").write_text("{}")
    (tmp_path / "a.dat").write_bytes(pickle.dumps({"a": 1}))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1]))
    (tmp_path / "b.safetensors").write_bytes(packed.getvalue())
    (tmp_path / "c.pt").write_bytes(b"")
    assert pickles_in(tmp_path) == ["a.dat", "b.safetensors", "c.pt"]


# --- hostile text

ESCAPES = "\x1b[2J\x1b]0;title\x07\x1b]8;;http://evil\x1b\\\x9b31m\x90q\x9c\x00\x08\x7f\r"
INVISIBLE = "\u202egnp.exe\u2066\u2069\u200b\u200f\u061c\u2028\u2029\ufeff\ufff9\U000e0041"
MARKUP = "</td></table><script>alert(1)</script><img src=x onerror=alert(2)>![x](http://e/p) [a](javascript:x) |"
HOSTILE = f"{ESCAPES}{INVISIBLE}{MARKUP}\nround 1  accepted  pass@1 1.0\n[bold red]x[/bold red]"
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    return make_run(tmp_path / "h-1", rounds=1, extra_text=HOSTILE, experiment=f"e{HOSTILE}").path


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["status", "--json"],
        ["show"],
        ["show", "--trajectories"],
        ["show", "--trajectories", "--json"],
        ["show", "--pairs"],
        ["show", "--pairs", "--json"],
        ["show", "--feedback"],
    ],
    ids=" ".join,
)
def test_model_text_cannot_steer_the_terminal(hostile: Path, command: list[str]) -> None:
    name, *options = command
    code, said = invoke(name, hostile, *options)
    assert code == 0, said
    assert FORBIDDEN.search(said) is None, repr(FORBIDDEN.search(said))
    if "--trajectories" in options or "--pairs" in options:
        assert "alert(1)" in said


def test_a_traced_example_cannot_steer_the_terminal(hostile: Path) -> None:
    pairs = json.loads(invoke("show", hostile, "--pairs", "--json")[1])
    for options in ([], ["--json"]):
        code, said = invoke("trace", hostile, pairs[0]["id"], *options)
        assert code == 0
        assert FORBIDDEN.search(said) is None


def test_an_id_that_is_typed_comes_back_without_its_control_characters(hostile: Path) -> None:
    code, said = invoke("trace", hostile, f"nothing{ESCAPES}{INVISIBLE}")
    assert code == 2
    assert FORBIDDEN.search(said) is None


@pytest.mark.parametrize("tool_use", [False, True], ids=["one-turn", "conversation"])
def test_model_text_is_inert_in_the_report(tmp_path: Path, tool_use: bool) -> None:
    folder = make_run(
        tmp_path / "h-2", rounds=1, extra_text=HOSTILE, experiment=f"e{HOSTILE}", tool_use=tool_use
    )
    html, markdown = (p.read_text(encoding="utf-8") for p in write_report(folder))
    for page in (html, markdown):
        assert FORBIDDEN.search(page) is None, repr(FORBIDDEN.search(page))
        assert "alert(1)" in page
        for tag in ("<script", "<img", "</td></table>"):
            assert tag not in page.replace("</td></tr></tbody></table>", "")
    assert "![x](" not in markdown
    assert "[a](" not in markdown
    assert "\nround 1  accepted" not in markdown


def test_every_character_that_is_forbidden_is_taken_out_and_no_other() -> None:
    assert FORBIDDEN.search(plain_text(HOSTILE)) is None
    kept = "naïve 数学 עברית \U0001f600 \u00a0 a\u200db\n\t"
    assert plain_text(kept) == kept

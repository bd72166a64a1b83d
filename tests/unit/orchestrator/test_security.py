"""Who gets in, and what gets out: floors, remote code, secrets, permissions, links."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.files import load_config
from orchestrator.config.remote_code import code_files, foreign_code, trusted_by
from orchestrator.driver.launch import resume_experiment
from orchestrator.plan.floors import FLOORS, below_floor, check_floors
from orchestrator.plan.network import listening
from orchestrator.plan.preflight import make_plan
from orchestrator.runs.events import EventKind, EventLog
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.private import check_confined
from orchestrator.runs.stored_config import config_digest, sealed
from orchestrator.tracking.metric_names import flatten_params
from policies.base import redaction
from policies.base.errors import ConfigurationError, CorruptStateError, PawlError, boundary
from policies.base.redaction import redact, redact_secrets
from tests.support.bad_rows import FAKE_MODEL, Row

CANARY = "canary-5f1b9e77"


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(redaction, "_known", {})
    Row(0, "good", ("", "", "", "")).spoil(tmp_path)
    return tmp_path


# --- floor versions


def test_the_installed_packages_are_above_their_floors() -> None:
    assert below_floor() == []


@pytest.mark.parametrize("floor", FLOORS, ids=lambda floor: floor.package)
def test_an_older_package_is_refused_with_its_holes_and_nothing_is_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, floor: object
) -> None:
    package = getattr(floor, "package", "")
    metadata = here / "site" / f"{package.replace('-', '_')}-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(here / "site"))
    with pytest.raises(
        ConfigurationError, match=rf"{package} is older than .*CVE-\d+.*got '0\.1\.0'.*Fix: pip"
    ):
        check_floors()
    code, _, said = invoke("run", "c.yaml")
    assert code == 2
    assert "CVE-" in said
    assert not (here / "runs").exists()


def test_versions_are_compared_by_number_and_local_parts_do_not_count() -> None:
    from orchestrator.plan.floors import _numbers

    assert _numbers("2.13.0+cpu") > _numbers("2.9.1")
    assert _numbers("0.32.0") > _numbers("0.18.0") > _numbers("0.9")


# --- code that comes with a model


def test_remote_code_is_off_pinned_and_named(here: Path) -> None:
    model = here / "m"
    model.mkdir()
    (model / "model.safetensors").write_bytes((FAKE_MODEL / "model.safetensors").read_bytes())
    (model / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "mine.M"}}))
    (model / "mine.py").write_text("M = 1\n")
    engine = "rollout.engine={type: transformers, trust_remote_code: true}"
    config = load_config("c.yaml", ["policy.model=./m", engine]).config
    assert trusted_by(config) == {"rollout.engine.trust_remote_code": str(model)}
    lines = [
        x.found for x in make_plan(config, run_folder=here / "r").lines if x.what == "remote code"
    ]
    digest = code_files(model)["mine.py"]
    assert len(lines) == 1
    assert f"mine.py sha256:{digest[:16]}" in lines[0]
    assert trusted_by(load_config("c.yaml", ["policy.model=./m"]).config) == {}
    commit = "policy.revision=" + "ab" * 20
    load_config("c.yaml", ["policy.model=org/model", engine, commit])
    with pytest.raises(ConfigurationError, match="could change"):
        load_config("c.yaml", ["policy.model=org/model", engine, commit[:-1]])
    judge = "judges=[{type: rubric, backend: {type: engine, model: org/judge, engine: {type: transformers, "
    with pytest.raises(ConfigurationError, match=r"judges\.0\.backend\.engine.*cannot be pinned"):
        load_config("c.yaml", [judge + "trust_remote_code: true}}}]"])
    assert foreign_code({"auto_map": {"A": ["x--y.Z", None], "B": "own.C"}}) == ["x--y.Z"]


def test_the_identity_of_a_run_names_the_code_and_other_code_does_not_resume(here: Path) -> None:
    files = {f"m/{p.name}": p.read_bytes() for p in FAKE_MODEL.iterdir()} | {"m/mine.py": "M = 1\n"}
    Row(0, "code", ("", "", "", ""), files=files).spoil(here)
    (here / "engine.py").write_text(
        "from workers.training.engines.fake import FakeTrainingEngine\n\n\nclass Mine(FakeTrainingEngine):\n"
        "    class Config(FakeTrainingEngine.Config):\n        trust_remote_code: bool = True\n"
    )
    code, _, said = invoke(
        "run", "c.yaml", "policy.model=./m", "training.engine=./engine.py:Mine", "--name", "a"
    )
    assert code == 0, said
    assert "trust_remote_code is on" in said
    run = here / "runs" / "a"
    assert json.loads((run / "run.json").read_text())["remote_code"] == code_files(here / "m")
    (here / "m" / "mine.py").write_text("M = 2\n")
    with pytest.raises(PawlError, match="is not the code that the run began with"):
        resume_experiment(RunFolder(run))


# --- secrets


def test_values_of_secret_variables_and_well_known_tokens_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_API_KEY", CANARY)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/tmp/where-it-is")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsefalse")
    text = f"a {CANARY} b hf_{'x' * 24} c Bearer abcdefgh12 d https://ann:pw@host e /tmp/where-it-is falsefalse"
    shown = "a *** b *** c Bearer *** d https://***@host e /tmp/where-it-is falsefalse"
    assert redact_secrets(text) == shown
    assert redact_secrets(shown) == shown
    assert str(PawlError(f"no answer ({CANARY})")) == "no answer (***)"
    with pytest.raises(PawlError) as caught, boundary(PawlError, "foreign"):
        raise RuntimeError(CANARY)
    assert CANARY not in str(caught.value)
    assert flatten_params({"a": {"b": f"x{CANARY}"}}) == {"a.b": "x***"}


def test_an_event_and_a_warning_hold_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_TOKEN", CANARY)
    log = EventLog(tmp_path / "events.jsonl")
    log.emit(EventKind.RUN_FAILED, message=f"x {CANARY}", nested={"list": [CANARY]})
    log.warn(f"careful {CANARY}")
    assert CANARY not in (tmp_path / "events.jsonl").read_text() + caplog.text


def test_a_secret_that_came_by_its_name_is_written_as_its_name(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", CANARY)
    overrides = ["tracking.experiment=x-${MY_API_KEY}-$${y}"]
    config = load_config("c.yaml", overrides).config
    assert config.tracking.experiment == f"x-{CANARY}-${{y}}"
    written = sealed(config)
    assert written["tracking"]["experiment"] == "x-${MY_API_KEY}-$${y}"
    before = config_digest(config)
    monkeypatch.setenv("MY_API_KEY", "another-value")
    assert config_digest(load_config("c.yaml", overrides).config) == before
    assert redact({"a": ["${x}", 1, None]}) == {"a": ["$${x}", 1, None]}


def test_a_literal_copy_of_a_secret_variable_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", CANARY)
    code, _, said = invoke("validate", "c.yaml", f"tracking.experiment=mine-{CANARY}")
    assert code == 2
    assert "write ${MY_API_KEY} here" in said
    assert CANARY not in said


# --- files


def test_everything_of_a_run_is_the_users_alone(here: Path) -> None:
    before = os.umask(0o000)
    try:
        assert invoke("run", "c.yaml", "--name", "a")[0] == 0
        assert os.umask(0o000) == 0o000, "the process keeps its own mask"
    finally:
        os.umask(before)
    run = here / "runs" / "a"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    found = [p for p in run.rglob("*") if stat.S_IMODE(p.lstat().st_mode) & 0o077]
    assert found == []


def test_a_link_may_stay_in_the_run_and_not_lead_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "a").mkdir(parents=True)
    (run / "a" / "file").write_text("x")
    (run / "inside").symlink_to(run / "a" / "file")
    check_confined(run)
    (run / "a" / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptStateError, match=r"leads out of it \(got .*/a/out -> .*Fix: "):
        check_confined(run)
    (run / "a" / "out").unlink()
    run.chmod(0o777)
    with pytest.raises(CorruptStateError, match=r"everybody may write.*0777.*Fix: chmod"):
        check_confined(run)


def test_a_model_name_cannot_climb_out_of_the_cache(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = here / "cache" / "models"
    cache.mkdir(parents=True)
    monkeypatch.setenv("PAWL_CACHE", str(here / "cache"))
    (here / "stolen").mkdir()
    (here / "stolen" / "model.safetensors").write_bytes(b"")
    monkeypatch.chdir(here)
    for name in ("../../stolen", "x/../../../stolen"):
        code, shown, _ = invoke("plan", "c.yaml", f"policy.model={name}")
        assert code == 2
        assert "no such model directory" in shown


# --- network


def test_the_plan_names_every_port_that_will_listen(here: Path) -> None:
    inline = load_config("c.yaml").config
    assert listening(inline) == ["none: everything runs in the driver"]
    ray = load_config("c.yaml", ["cluster.backend=ray", "training.workers=2"]).config
    text = "\n".join(listening(ray))
    assert "Ray on 127.0.0.1" in text
    assert "only with the run's own token" in text
    assert "training group of 2" in text
    joined = load_config("c.yaml", ["cluster.backend=ray", "cluster.address=head:6379"]).config
    assert "Ray at head:6379" in "\n".join(listening(joined))
    assert "ports" in invoke("plan", "c.yaml")[1]

"""A version is its weights and all files beside them: one that was edited, lost or added is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.app import app
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.events import Event, EventKind
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.judge_models import check_same_models, local_judge_models, model_as_recorded
from orchestrator.runs.phases import Drawn
from policies.base.errors import CorruptPolicyError, CorruptStateError, PolicyStoreError
from policies.base.records import PolicyVersion
from policies.storage.artifacts import write_json
from policies.storage.fake_model import FAKE_POLICY, write_fake_model
from policies.storage.policy_store import PolicyStore, check_companions, check_files
from policies.storage.version_files import files_digest
from tests.support.fake_runs import fake_config, fake_tree

SIDE_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "additional_chat_templates/tool_use.jinja",
)
UNREAD = ("README.md", "notes.txt", "pytorch_model.bin", ".gitattributes", "onnx/config.json")
"""What people and other programs keep in a model folder, and no library reads by itself."""


def model_folder(path: Path) -> Path:
    """A model with every kind of file beside its weights."""
    for name in ("model.safetensors", *SIDE_FILES):
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(f"{name} as published\n".encode())
    return path


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    """Version 0, the starting model, in `model`; version 1, published."""
    store = PolicyStore(tmp_path / "policies")
    store.adopt_initial(model_folder(tmp_path / "model"))
    store.publish(model_folder(tmp_path / "new"), number=1, round_index=1, parent=0)
    return store


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", SIDE_FILES)
def test_a_file_beside_the_weights_that_is_edited_lost_or_added_is_refused_by_name(
    store: PolicyStore, number: int, name: str
) -> None:
    version = store.get(number)
    path = Path(version.path) / name
    before = path.read_bytes()
    path.write_bytes(before.replace(b"published", b"publishes"))
    with pytest.raises(CorruptPolicyError, match=rf"{name} changed.* Set by: .* Fix: restore"):
        check_files(version)
    path.unlink()
    with pytest.raises(CorruptPolicyError, match=f"{name} is missing"):
        check_companions(version)
    path.write_bytes(before)
    check_files(version)  # the remedy


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", ["adapter_config.json", "vocab.txt", "other.jinja"])
def test_a_file_that_a_library_would_read_may_not_be_added(
    store: PolicyStore, number: int, name: str
) -> None:
    version = store.get(number)
    (Path(version.path) / name).write_text("{}", encoding="utf-8")
    with pytest.raises(CorruptPolicyError, match=f"{name} was added.*remove what was added"):
        check_files(version)
    (Path(version.path) / name).unlink()
    check_files(version)


def test_what_no_library_reads_may_come_and_go_beside_a_model(store: PolicyStore) -> None:
    for number in (0, 1):
        version = store.get(number)
        for name in UNREAD:
            path = Path(version.path) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"kept by somebody")
        check_files(version)
        store.adopt_initial(Path(store.get(0).path))


def test_the_starting_model_of_a_run_that_has_begun_is_compared_and_never_recorded_anew(
    store: PolicyStore,
) -> None:
    folder = Path(store.get(0).path)
    (folder / "chat_template.jinja").write_text("Be kind. {{ messages }}", encoding="utf-8")
    with pytest.raises(PolicyStoreError, match=r"chat_template\.jinja changed"):
        store.adopt_initial(folder, begun=True)
    (store.directory(0) / "manifest.json").unlink()
    with pytest.raises(PolicyStoreError, match="recorded of its starting model is gone"):
        store.adopt_initial(folder, begun=True)


def test_a_manifest_names_every_file_with_size_and_sha256_and_is_sealed(store: PolicyStore) -> None:
    path = store.directory(1) / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    named = {fact["name"]: fact["num_bytes"] for fact in manifest["contents"]}
    inside = [p for p in store.directory(1).rglob("*") if p.is_file() and p != path]
    assert named == {p.relative_to(store.directory(1)).as_posix(): p.stat().st_size for p in inside}
    text = path.read_text(encoding="utf-8")
    for broken in (text.replace('"round": 1', '"round": 2'), text.rstrip("\n"), text[:-40]):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(CorruptPolicyError, match="cannot be read"):
            store.get(1)
    path.write_text(text, encoding="utf-8")
    store.get(1)


def test_a_manifest_of_an_older_pawl_is_held_to_its_weights_alone(store: PolicyStore) -> None:
    path = store.directory(1) / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {k: v for k, v in manifest.items() if k not in ("contents", "seal")})
    version = store.get(1)
    (Path(version.path) / "tokenizer.json").write_bytes(b"edited")
    check_files(version)
    assert files_digest(version) == ""


def stop_after_round_1(event: Event) -> None:
    """An observer that ends the driver as Ctrl-C does."""
    if (event.kind, event.round) == (EventKind.ROUND_FINISHED, 1):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that stopped after its first round, with the model it began with beside it."""
    root = tmp_path_factory.mktemp("beside")
    run = RunFolder(root / "run")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(fake_config(root), run, source="", observers=[stop_after_round_1])
    return run


def resume(run: RunFolder) -> Result:
    return CliRunner().invoke(app, ["resume", str(run.path)])


Places = Callable[[RunFolder], Path]
PLACES: dict[str, Places] = {
    "the version that serves": lambda run: run.policies / "0001" / FAKE_POLICY,
    "the starting model": lambda run: run.path.parent / "model" / FAKE_POLICY,
}


def test_a_run_never_goes_on_with_a_file_beside_the_weights_that_was_edited(
    unfinished: RunFolder,
) -> None:
    for what, place in PLACES.items():
        path = place(unfinished)
        before = path.read_bytes()
        path.write_text(json.dumps({"skill": 1.0}) + "\n", encoding="utf-8")
        journal = unfinished.journal.read_bytes()
        done = resume(unfinished)
        assert done.exit_code == 3, f"{what}: {done.output}"
        assert f"{FAKE_POLICY} changed" in done.output
        assert all(part in done.output for part in ("Set by:", "Fix: restore", "(got ")), what
        assert unfinished.journal.read_bytes() == journal
        assert any(FAKE_POLICY in text for check in audit(unfinished) for text in check.problems), (
            what
        )
        path.write_bytes(before)
    copy = RunFolder(Path(shutil.copytree(unfinished.path, unfinished.path.parent / "copy")))
    assert resume(copy).exit_code == 0, "restored, it goes on"
    assert not audit(copy).num_problems


def with_judge(root: Path) -> RunConfig:
    write_fake_model(root / "judge", skill=0.9)
    backend = {"type": "engine", "engine": {"type": "fake"}, "model": str(root / "judge")}
    return RunConfig.model_validate(
        fake_tree(root, judges=[{"type": "rubric", "backend": backend}])
    )


def test_the_model_of_a_judge_is_recorded_and_compared(tmp_path: Path) -> None:
    config = with_judge(tmp_path)
    name = str(tmp_path / "judge")
    models = local_judge_models(config)
    initial = PolicyVersion(number=0, round=0, parent=None, path="p", digest="d", companions=())
    recorded = Drawn(
        num_prompts=1,
        num_shards=0,
        digest="d",
        model=files_digest(initial),
        judge_models={n: files_digest(v) for n, v in models.items()},
    )
    check_same_models(recorded, initial, local_judge_models(config))
    (tmp_path / "judge" / FAKE_POLICY).write_text('{"skill": 0.0}\n', encoding="utf-8")
    with pytest.raises(CorruptStateError, match=r"model of a judge .*Set by: judges.*Fix: restore"):
        check_same_models(recorded, initial, local_judge_models(config))
    with pytest.raises(CorruptPolicyError, match="changed"):
        check_files(model_as_recorded(models, name))
    other = initial.model_copy(update={"digest": "e"})
    with pytest.raises(CorruptStateError, match="the starting model is not what the run began"):
        check_same_models(recorded, other, {})

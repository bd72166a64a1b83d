"""The policy store: versions are write-once, carry their digest, and notice every change."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.base.errors import CorruptPolicyError, InputError, PolicyStoreError, StorageError
from policies.storage.policy_store import PolicyStore, check_files, weight_files
from tests.support.no_file_opens import no_file_opens


def model(path: Path, content: bytes = b"weights") -> Path:
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(content)
    (path / "config.json").write_text("{}", encoding="utf-8")
    return path


def test_a_published_version_knows_its_parent_and_digest(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path / "policies")
    initial = store.adopt_initial(model(tmp_path / "m"))
    candidate = model(tmp_path / "candidate", b"new")
    version = store.publish(candidate, number=1, round_index=1, parent=initial.number)
    assert (version.number, version.parent, version.round) == (1, 0, 1)
    assert version.digest != initial.digest
    assert not candidate.exists()
    check_files(version)
    check_files(initial)
    assert store.get(1) == version


def test_publishing_again_after_a_crash_gives_the_same_version(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path / "policies")
    first = store.publish(model(tmp_path / "c"), number=1, round_index=1, parent=0)
    assert store.publish(tmp_path / "gone", number=1, round_index=1, parent=0) == first


def test_a_publish_cut_off_between_rename_and_manifest_completes(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path / "policies")
    model(store.directory(1), b"moved")
    version = store.publish(tmp_path / "gone", number=1, round_index=1, parent=0)
    check_files(version)


def test_a_changed_weight_file_is_refused_by_name(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path / "policies")
    version = store.publish(model(tmp_path / "c"), number=3, round_index=3, parent=2)
    (Path(version.path) / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(CorruptPolicyError, match=r"version 3 .*model\.safetensors changed"):
        check_files(version)
    (Path(version.path) / "model.safetensors").unlink()
    with pytest.raises(CorruptPolicyError, match=r"model\.safetensors is missing"):
        check_files(version)


def test_a_starting_model_that_changed_since_the_run_began_is_refused(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path / "policies")
    directory = model(tmp_path / "m")
    store.adopt_initial(directory)
    (directory / "model.safetensors").write_bytes(b"other")
    with pytest.raises(PolicyStoreError, match="changed since the run began"):
        store.adopt_initial(directory)


def test_a_version_that_was_never_published_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyStoreError, match="version 7 was never published"):
        PolicyStore(tmp_path).get(7)


def test_pickled_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.mkdir()
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"only pickled weights .*safetensors"):
        weight_files(path)
    with pytest.raises(InputError, match="no model directory"):
        weight_files(tmp_path / "missing")


def test_what_the_machine_does_not_let_us_read_is_not_taken_for_damage(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path / "policies")
    version = store.publish(model(tmp_path / "c"), number=1, round_index=1, parent=0)
    with no_file_opens(), pytest.raises(StorageError, match=r"manifest\.json could not be"):
        store.get(1)
    assert store.get(1) == version

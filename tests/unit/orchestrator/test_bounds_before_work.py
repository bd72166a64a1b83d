"""Sizes, depths, counts and kinds of files are looked at before anything is read whole; a bomb is refused at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.strict_yaml import parse_yaml
from orchestrator.prompts.sources import jsonl
from orchestrator.prompts.sources.parquet import ParquetSource
from policies.base.errors import ConfigurationError, InputError
from policies.storage.bounded_json import BoundsError, parse_json, read_bounded
from policies.storage.fake_model import read_skill
from policies.storage.model_folder import check_folder
from policies.storage.safetensors_header import read_header
from tests.support.bad_rows import FAKE_MODEL, Row

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Row(0, "good", ("", "", "", "")).spoil(tmp_path)
    return tmp_path


@pytest.mark.parametrize("first", ["{}", "{x: 1}"])
def test_merges_that_multiply_are_counted_also_when_they_bring_nothing(first: str) -> None:
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 14)]
    with pytest.raises(ConfigurationError, match="aliases expand to too many values"):
        parse_yaml("\n".join(lines), name="c")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: &a {<<: *a}", "too deep"),
        ("a: " + "[" * 100_000, "too deep"),
        ("[" + "1," * 30_000 + "]", "too many values"),
        ("a: 0x" + "f" * 5000, "it has 5002 digits"),
        ("a: " + "9" * 4000, "it has 4000 digits"),
    ],
)
def test_yaml_that_is_too_deep_too_full_or_too_long_is_refused_while_it_is_read(
    text: str, what: str
) -> None:
    with pytest.raises(ConfigurationError, match=what):
        parse_yaml(text, name="c")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        (r'rollout.template_arguments={x: "\ud800"}', "half of a surrogate pair"),
        (r'tracking.experiment="\0"', "NUL character"),
        ("rollout.template_arguments={x: .inf}", "must be a finite number"),
        (f"rollout.template_arguments={{x: {2**64}}}", "whole number of 64 bits"),
        (f"policy.model={'x' * 5000}", "longer than a path may be"),
        (f"policy.model=./{'x' * 300}", "longer than a file's may be"),
        (f"tracking.uri=sqlite:///{'x' * 5000}", "longer than a path may be"),
        (f"verifiers.{'9' * 5000}.type=exact_match", "is not an index"),
        (".".join("a" * 100) + "=1", "leads 100 levels down"),
        ("cluster.training_timeout_seconds=1e308", "less than or equal to 2000000"),
        ("training.learning_rate=1e30", "less than or equal to 100"),
        ("rollout.workers=10000000", "less than or equal to 8192"),
        ("prompts.train={type: arithmetic, high: 1000000000}", "more than 100000"),
        ("prompts.train={type: episodes, starts: {stones: {low: 0, high: 999999999}}}", "more than 100000"),
    ],
)  # fmt: skip
def test_a_value_that_nothing_can_work_with_is_refused_with_its_place(
    here: Path, override: str, what: str
) -> None:
    done = CliRunner().invoke(app, ["validate", "c.yaml", override])
    assert done.exit_code == 2
    assert what in done.stderr
    assert "Fix: " in done.stderr
    assert len(done.stderr) < 8000


def test_json_is_refused_by_its_number_of_values_its_depth_and_its_numbers() -> None:
    assert parse_json(b'{"a": [1, -0.0, "x,y"]}') == {"a": [1, -0.0, "x,y"]}
    for content in (b"[" + b"[]," * 100 + b"1]", b"[" * 100_000, b"9" * 500, b"1e400"):
        with pytest.raises(BoundsError):
            parse_json(content, max_values=100)
    with pytest.raises(ValueError, match="NaN"):
        parse_json(b"NaN")


def test_a_pipe_is_not_waited_for_and_a_device_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    for path in (tmp_path / "f", Path("/dev/zero"), tmp_path):
        with pytest.raises((BoundsError, OSError)):
            read_bounded(path, max_bytes=10)


def _table(kind: str) -> pa.Table:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["x" * 10**6]))
    columns: dict[str, Callable[[], object]] = {
        "repeated": lambda: text,
        "nested": lambda: pa.ListArray.from_arrays(pa.array([0, 300], pa.int32()), text),
        "zeros": lambda: pa.array(["x" * 80_000_000]),
        "nulls": lambda: pa.nulls(2_000_000, pa.string()),
        "null items": lambda: pa.ListArray.from_arrays(
            pa.array([0, 10_000_000], pa.int32()), pa.nulls(10_000_000, pa.string())
        ),
    }
    return pa.table({"prompt": columns[kind]()})


@pytest.mark.parametrize("kind", ["repeated", "nested", "zeros", "nulls", "null items"])
def test_a_parquet_file_that_becomes_far_larger_than_it_is_is_refused_before_it_is_decoded(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(_table(kind), path, compression="zstd", store_schema=False)
    before = pa.total_allocated_bytes()
    source = ParquetSource(ParquetSource.Config(type="parquet", path=str(path)))
    with pytest.raises(InputError, match=r"far more memory than its size.*Fix: .*type: jsonl"):
        source.load()
    assert pa.total_allocated_bytes() - before < 64 << 20


def test_a_parquet_file_of_many_rows_and_repeated_texts_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = {"prompt": [f"q{i}" for i in range(3000)], "system": ["be brief " * 50] * 3000}
    pq.write_table(pa.table(rows), path)
    source = ParquetSource(ParquetSource.Config(type="parquet", path=str(path)))
    assert len(source.load()) == 3000


def test_a_file_of_blank_lines_and_a_line_of_too_many_values_end_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_BLANK_LINES", 50)
    for content, what in (
        (b"\n" * 100, "51 blank lines in a row"),
        (b'{"a": [' + b"[]," * 600_000 + b"1]}", "more than 500000 values"),
    ):
        (tmp_path / "t.jsonl").write_bytes(content)
        config = jsonl.JsonlSource.Config(type="jsonl", path=str(tmp_path / "t.jsonl"))
        with pytest.raises(InputError, match=what):
            jsonl.JsonlSource(config).load()


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


_KINDS: dict[str, Callable[[Path], None]] = {
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a device": _link("/dev/zero"),
    "the kernel makes up": _link("/proc/self/mem"),
    "cannot be looked at": _link("/nowhere/x"),
    "Too many levels": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model-2.safetensors", "x.jinja"]
)
@pytest.mark.parametrize("kind", _KINDS)
def test_what_stands_in_the_place_of_a_model_file_is_refused_by_plan_at_once(
    here: Path, kind: str, name: str
) -> None:
    model = here / "m"
    model.mkdir()
    for file in FAKE_MODEL.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    check_folder(model)
    _KINDS[kind](model / name)
    with pytest.raises(InputError, match=kind):
        check_folder(model)
    done = CliRunner().invoke(app, ["run", "c.yaml", "policy.model=m"])
    assert (done.exit_code, kind in done.stderr) == (2, True)
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    "named", ["../x.safetensors", "/etc/passwd", "", "gone.safetensors", 7, None]
)
def test_an_index_may_name_only_weight_files_beside_it(tmp_path: Path, named: object) -> None:
    index = {"weight_map": {"w": named}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index of the weights.*Fix: "):
        check_folder(tmp_path)


def test_a_settings_file_of_300_mb_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as handle:
        handle.truncate(300 << 20)
    with pytest.raises(InputError, match="larger than such a file may be"):
        check_folder(tmp_path)


def _weights(header: bytes, data: int) -> bytes:
    return len(header).to_bytes(8, "little") + header + b"\0" * data


_ONE = '"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}'


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (f"{{{_ONE}, {_ONE}}}", "a key twice"),
        (f'{{{_ONE}, "b": {{"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}}}', "overlaps"),
        (f'{{{_ONE}, "b": {{"dtype": "U8", "shape": [1], "data_offsets": [5, 6]}}}}', "a gap"),
        ('{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}', "does not fit"),
        ('{"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 4]}}', "unknown dtype"),
        ('{"a": {"dtype": "U8", "shape": [true], "data_offsets": [0, 1]}}', "no sizes"),
        ('{"a": {"dtype": "U8", "shape": [-4], "data_offsets": [0, -4]}}', "no sizes"),
        ('{"a": {"dtype": "U8", "shape": [1e30], "data_offsets": [0, 4]}}', "no sizes"),
        (f'{{"__metadata__": {{"a": 1}}, {_ONE}}}', "no table of texts"),
        (f"{{{_ONE}}}", "behind its last tensor"),
    ],
)
def test_a_header_that_the_library_would_refuse_is_refused_by_what_is_wrong(
    tmp_path: Path, header: str, what: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_weights(header.encode(), 60))
    with pytest.raises(InputError, match=what):
        read_header(path)


@pytest.mark.parametrize("skill", ["NaN", "2", '"x"', "[]", "true", "1e400"])
def test_a_fake_policy_states_a_share(tmp_path: Path, skill: str) -> None:
    (tmp_path / "fake_policy.json").write_text(f'{{"skill": {skill}}}')
    with pytest.raises(InputError, match=r"no share of right answers.*Set by: policy.model.*Fix: "):
        read_skill(tmp_path)


def test_closed_streams_a_gone_folder_and_a_full_disk_are_no_internal_errors(here: Path) -> None:
    pawl = f"{sys.executable} -m orchestrator.cli"
    lines = {
        f"{pawl} validate c.yaml >&-": 0,
        f"{pawl} validate c.yaml <&- >/dev/null 2>&-": 0,
        f"{pawl} validate c.yaml >/dev/full": 75,
        f"mkdir gone && cd gone && rmdir ../gone && {pawl} validate c.yaml": 2,
        f"env -u HOME TMPDIR=/nowhere LC_ALL=C {pawl} validate c.yaml policy.model=~nobody-here/x": 0,
        f"mkfifo f && {pawl} validate f": 2,
    }
    for line, code in lines.items():
        done = subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert (line, done.returncode) == (line, code), done.stderr
        assert "internal error" not in done.stderr
        assert code == 0 or "Fix: " in done.stderr


def test_a_sample_of_the_fuzz_suite_is_refused_well_or_runs() -> None:
    line = [sys.executable, "scripts/fuzz.py", "--seed", "3", "--seconds", "8", "--runs", "0.2"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout

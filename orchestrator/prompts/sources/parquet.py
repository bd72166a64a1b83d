"""Prompts from Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.prompts.paths import existing_file, listed
from orchestrator.prompts.row_values import Row, RowError
from orchestrator.prompts.rows import RowConfig, RowSource
from policies.errors import InputError, explain

NUM_ROWS_AT_ONCE = 1024


class ParquetSource(RowSource):
    """Reads the files in the order given. Rows are counted from 1."""

    class Config(RowConfig):
        """Settings of `parquet`."""

        path: str | tuple[str, ...]
        """File, or files; relative to the config file."""

    config: Config

    def rows(self) -> Iterator[Row | RowError]:
        for name in listed(self.config.path):
            yield from _read(existing_file(name))

    def origin(self) -> str:
        return ", ".join(listed(self.config.path))


def _read(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=NUM_ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values, is_padded=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(
            explain(
                f"the file cannot be read as Parquet: {str(error).partition(chr(10))[0]}",
                value=str(path),
                where="prompts.*.path",
                fix="fetch it again, or use the type of what it is (jsonl, huggingface)",
            )
        ) from error

"""Prompts from Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.prompts.parquet_pages import (
    MAX_FOOTER,
    TooLargeError,
    check_pages,
    check_repeats,
)
from orchestrator.prompts.paths import existing_file, listed
from orchestrator.prompts.row_config import RowConfig
from orchestrator.prompts.row_values import Row, RowError
from orchestrator.prompts.rows import RowSource
from policies.base.errors import InputError, explain

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
        check_file(path)
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=NUM_ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values, is_padded=True)
    except TooLargeError as error:
        raise too_large(error, str(path)) from error
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(
            explain(
                f"the file cannot be read as Parquet: {str(error).partition(chr(10))[0]}",
                value=str(path),
                where="prompts.*.path",
                fix="fetch it again, or use the type of what it is (jsonl, huggingface)",
            )
        ) from error


def too_large(error: TooLargeError, name: str) -> InputError:
    """Return the refusal of a Parquet file that would take too much memory."""
    return InputError(
        explain(
            f"the Parquet file takes far more memory than its size: {error}",
            value=name,
            where="prompts.*.path",
            fix="if that is right, write it as JSON Lines (type: jsonl), which is read row by row",
        )
    )


def check_file(path: Path) -> None:
    """Look at footer and page headers of a Parquet file before anything is decoded.

    Raises:
        TooLargeError: it would take far more memory than its size.
        ValueError: it is damaged (as pyarrow's own exceptions say, too).
    """
    import pyarrow.parquet as pq

    with path.open("rb") as handle:
        handle.seek(-min(8, path.stat().st_size), 2)
        end = handle.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] == b"PAR1" and length > MAX_FOOTER:
        raise TooLargeError(f"its footer claims {length} bytes")
    limits = {"thrift_string_size_limit": MAX_FOOTER, "thrift_container_size_limit": 1_000_000}
    with pq.ParquetFile(path, **limits) as file:
        repeating = check_pages(path, file.metadata)
    check_repeats(path, repeating)

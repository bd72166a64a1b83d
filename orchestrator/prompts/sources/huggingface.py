"""Prompts from a Hugging Face data set, by name or from a local folder or file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.prompts.row_values import Row, RowError
from orchestrator.prompts.rows import RowConfig, RowSource
from policies.base.errors import InputError, boundary, explain

_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


class HuggingFaceSource(RowSource):
    """Reads one split with `datasets`. Scripts of a data set are never run."""

    is_heavy = True

    class Config(RowConfig):
        """Settings of `huggingface`."""

        path: str
        """Name on the hub, or a local folder or file."""
        name: str | None = None
        """Configuration of the data set, e.g. `main`."""
        split: str = "train"
        """Split, also with a slice: `train[:500]`."""
        revision: str | None = None
        """Branch, tag or commit on the hub; pin a commit to repeat a run."""
        cache_dir: str | None = None
        """Where downloads and conversions are kept; the library's own cache by default."""

    config: Config

    def rows(self) -> Iterator[Row | RowError]:
        dataset = self._dataset()
        for number, values in enumerate(dataset, start=1):
            yield Row(f"{self.origin()}: row {number}", values, is_padded=True)

    def origin(self) -> str:
        config = self.config
        return f"{config.path}{f'/{config.name}' if config.name else ''}[{config.split}]"

    def _dataset(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                explain(
                    "the package `datasets` is not installed",
                    value=str(error),
                    where="prompts.*.type = huggingface",
                    fix="pip install datasets, or use type: jsonl or parquet",
                )
            ) from error
        config = self.config
        local = Path(config.path)
        what = f"cannot load data set {config.path!r}"
        if local.is_file() and local.suffix in _BUILDERS:
            with boundary(InputError, what):
                return datasets.load_dataset(  # nosec B615 # a file of the user's
                    _BUILDERS[local.suffix],
                    data_files=str(local),
                    split=config.split,
                    cache_dir=config.cache_dir,
                )
        hint = (
            ""
            if local.exists()
            else " (a hub name: offline? then download it and give its folder as path)"
        )
        with boundary(InputError, what + hint):
            return datasets.load_dataset(
                config.path,
                name=config.name,
                split=config.split,
                revision=config.revision,
                cache_dir=config.cache_dir,
            )

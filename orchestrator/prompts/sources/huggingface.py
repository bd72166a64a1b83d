"""Prompts from a Hugging Face data set, by name or from a local folder or file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.prompts.parquet_pages import TooLargeError
from orchestrator.prompts.row_config import RowConfig
from orchestrator.prompts.row_values import Row, RowError
from orchestrator.prompts.rows import RowSource
from orchestrator.prompts.sources.parquet import check_file, too_large
from policies.base.bounds import MAX_COUNT
from policies.base.errors import InputError, boundary, explain
from policies.base.requirements import Requirements

_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


class HuggingFaceSource(RowSource):
    """Reads one split with `datasets`. Scripts of a data set are never run.

    It is bounded as files are that we read ourselves: by the rows that the data set states, and by what the footers and
    pages of its Parquet files will become.
    """

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

        def requires(self) -> Requirements:
            """The data set, which is downloaded where no folder or file has its name."""
            return super().requires() + Requirements(data_sets=(self.path,))

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
        hint = (
            ""
            if local.exists()
            else " (a hub name: offline? then download it and give its folder as path)"
        )
        with boundary(InputError, f"cannot load data set {config.path!r}{hint}"):
            if local.is_file() and local.suffix in _BUILDERS:
                builder = datasets.load_dataset_builder(  # nosec B615 # a file of the user's
                    _BUILDERS[local.suffix], data_files=str(local), cache_dir=config.cache_dir
                )
            else:
                builder = datasets.load_dataset_builder(
                    config.path,
                    name=config.name,
                    revision=config.revision,
                    cache_dir=config.cache_dir,
                )
            self._check_counts(builder.info)
            builder.download_and_prepare(dl_manager=self._downloads(datasets, builder))
            return builder.as_dataset(split=config.split)

    def _check_counts(self, info: Any) -> None:
        """Refuse by what the data set says of itself, before anything of it is downloaded or converted."""
        for name, split in (info.splits or {}).items():
            rows = int(split.num_examples or 0)
            if rows > MAX_COUNT and self._reads(name):
                raise InputError(
                    explain(
                        f"split {name!r} states {rows} rows, more than {MAX_COUNT} that prompts may be read from",
                        value=self.origin(),
                        where="prompts.*.split",
                        fix="write the rows that are wanted to a file of their own (type: parquet or jsonl)",
                    )
                )

    def _reads(self, split: str) -> bool:
        """Tell whether the setting names the split, also with a slice or together with others (`train+test[:5]`)."""
        parts = (part.partition("[")[0].strip() for part in self.config.split.split("+"))
        return any(part in (split, "all") for part in parts)

    def _downloads(self, datasets: Any, builder: Any) -> Any:
        """The library's way of fetching files, with a look at each Parquet file before it is decoded."""
        cache = self.config.cache_dir
        fetching = datasets.DownloadConfig(
            cache_dir=None
            if cache is None
            else os.path.join(os.path.expanduser(cache), "downloads"),
            use_etag=False,
            token=builder.token,
            storage_options=builder.storage_options,
        )

        class Looking(datasets.DownloadManager):  # type: ignore[misc] # a class of the untyped library
            def download(self, url_or_urls: Any) -> Any:
                found = super().download(url_or_urls)
                for url, path in self.downloaded_paths.items():
                    _check_parquet(Path(path), str(url))
                return found

        return Looking(
            dataset_name=builder.dataset_name,
            data_dir=builder.config.data_dir,
            base_path=builder.base_path,
            download_config=fetching,
        )


def _check_parquet(path: Path, name: str) -> None:
    """Look at what was fetched under `name`, where it is a Parquet file."""
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            return
    try:
        check_file(path)
    except TooLargeError as error:
        raise too_large(error, name) from error

"""Measures what a Parquet file would take in memory, from its footer and the headers of its pages: nothing is
decompressed.

A page of zeros compresses to a millionth of its size, and what a footer says of sizes is not what a reader allocates:
that is in the header of each page. Thrift's compact protocol, as far as a PageHeader needs it
(https://github.com/apache/parquet-format, `parquet.thrift`; `thrift-compact-protocol.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

MAX_DECODED_AT_LEAST = 64 << 20
"""A file may always take so many bytes when it is decoded."""
MAX_RATIO = 200
"""Above that, so many times the size of the file: text compresses to a tenth, a repeated column to a hundredth."""
MAX_COLUMNS = 10_000
MAX_FOOTER = 32 << 20
FREE_ROWS = 100_000
"""Rows that may take less than a byte each."""
_MAX_HEADER = 1 << 20
_BYTES_PER_VALUE = 8
_MAX_NESTING = 8


class TooLargeError(ValueError):
    """The file takes more memory than a data set of its size does."""


def check_pages(path: Path, metadata: Any) -> list[str]:
    """Look at every page header of a file whose footer is `metadata` (`pyarrow.parquet.FileMetaData`).

    Returns:
        Columns of texts whose dictionary could make them take more than the file may: `check_repeats` counts those.

    Raises:
        TooLargeError: pages, values, rows or columns are more than a file of this size holds.
        ValueError: a page header cannot be read.
    """
    size = path.stat().st_size
    most = most_decoded(size)
    if metadata.num_columns > MAX_COLUMNS:
        raise TooLargeError(f"it has {metadata.num_columns} columns, more than {MAX_COLUMNS}")
    if metadata.num_rows > max(FREE_ROWS, size):
        raise TooLargeError(f"it states {metadata.num_rows} rows in {size} bytes")
    decoded = 0
    repeating: dict[str, None] = {}
    with path.open("rb") as handle:
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                wide = max(_BYTES_PER_VALUE, metadata.schema.column(column).length or 0)
                for is_dictionary, num_bytes, num_values in _pages(handle, chunk, size):
                    decoded += num_bytes + wide * num_values
                    if decoded > most:
                        raise TooLargeError(_becomes(size, most))
                    if is_dictionary and num_bytes * chunk.num_values > most:
                        repeating[chunk.path_in_schema] = None
    return list(repeating)


def most_decoded(size: int) -> int:
    """Bytes that the rows of a file of this size may take together."""
    return max(MAX_DECODED_AT_LEAST, MAX_RATIO * size)


def check_repeats(path: Path, columns: Sequence[str]) -> None:
    """Count what these columns take when every repeated text is written out, without writing one out.

    Raises:
        TooLargeError: it is more than a file of this size may take.
    """
    import pyarrow.parquet as pq

    size = path.stat().st_size
    total = 0
    for column in columns:
        with pq.ParquetFile(path, read_dictionary=[column]) as file:
            for batch in file.iter_batches(columns=[column]):
                total += sum(map(_written_out, batch.columns))
                if total > most_decoded(size):
                    raise TooLargeError(_becomes(size, most_decoded(size)))


def _written_out(array: Any) -> int:
    """Bytes of the texts of an array, whatever they are nested in."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(array.type):
        if not _is_text(array.dictionary.type):
            return int(array.nbytes)
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(pc.take(lengths, array.indices)).as_py() or 0)
    if pa.types.is_struct(array.type):
        return sum(map(_written_out, array.flatten()))
    if pa.types.is_map(array.type):
        return _written_out(array.keys) + _written_out(array.items)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _written_out(array.flatten())
    return int(array.nbytes)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)  # fmt: skip
    return any(check(kind) for check in checks)


def _becomes(size: int, most: int) -> str:
    return f"its {size} bytes become more than {most} when they are decoded"


def _pages(handle: BinaryIO, chunk: Any, size: int) -> list[tuple[bool, int, int]]:
    """Kind, decoded bytes and number of values of every page of a column chunk."""
    begin = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
        begin = min(begin, chunk.dictionary_page_offset)
    end = begin + chunk.total_compressed_size
    if not 4 <= begin <= end <= size:
        raise ValueError("a column lies outside the file")
    found: list[tuple[bool, int, int]] = []
    seen = 0
    while begin < end and (seen < chunk.num_values or not found):
        handle.seek(begin)
        header = _Thrift(handle.read(min(_MAX_HEADER, end - begin)))
        fields = header.struct(0)
        kind, decoded, compressed = (fields.get(n) for n in (1, 2, 3))
        if not (isinstance(kind, int) and isinstance(decoded, int) and isinstance(compressed, int)):
            raise ValueError("a page has no sizes")
        if decoded < 0 or compressed < 0:
            raise ValueError("a page has a negative size")
        inner = fields.get({0: 5, 2: 7, 3: 8}.get(kind, 0))
        values = inner.get(1) if isinstance(inner, dict) else None
        num_values = values if isinstance(values, int) else 0
        if num_values < 0:
            raise ValueError("a page has a negative number of values")
        found.append((kind == 2, decoded, num_values))
        seen += 0 if kind == 2 else num_values
        begin += header.at + compressed
    return found


class _Thrift:
    """Reads one struct of Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def struct(self, depth: int) -> dict[int, Any]:
        """Fields by number: whole numbers and structs; everything else is passed over."""
        if depth > _MAX_NESTING:
            raise ValueError("a page header is nested too deep")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _byte(self) -> int:
        if self.at >= len(self.data):
            raise ValueError("a page header is cut off")
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a page header holds a number that does not end")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):  # true, false
            return None
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            self.at += 8
        elif kind == 8:
            length = self._varint()
            self.at += length
        elif kind in (9, 10):
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._varint()):
                self._value(head & 15, depth + 1)
        elif kind == 12:
            return self.struct(depth + 1)
        else:
            raise ValueError("a page header holds an unknown kind of value")
        return None

"""Files to rows: JSON lines, csv, tsv (each also gzip'd) and parquet; local folders and data sets of the hub."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from acge_lightning.data.records import RowError
from acge_lightning.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
csv.field_size_limit(2**31 - 1)


def locate(path: str | Path) -> Path:
    """Where data lies: a file or folder, `sample:…` of the packaged sample, or a data set of the hub (`owner/name`)."""
    if str(path).startswith("sample:"):
        path = Path(__file__).parents[1] / "sample" / str(path).removeprefix("sample:")
    local = Path(path).expanduser()
    if local.exists():
        return local
    name = str(path)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise InputError(f"{name}: there is no such file or folder: check the path (and paths.data_dir)")
    from huggingface_hub import snapshot_download

    try:
        wanted = [f"*{suffix}" for suffix in SUFFIXES]
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=wanted))
    except (OSError, ValueError) as error:
        reason = _first_line(error)
        raise InputError(
            f"{name}: no such folder here, and no data set of that name can be fetched from the hub ({reason})"
        ) from error


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split (`train.jsonl.gz`, `train.parquet`, `data/train-00000-of-00002.parquet` …); [] if there are none."""
    if not folder.is_dir():
        return []
    for place in (folder, folder / "data"):
        for suffix in SUFFIXES:
            found = [p for p in (place / f"{split}{suffix}",) if p.is_file()] or sorted(place.glob(f"{split}-*{suffix}"))
            if found:
                return found
    return sorted(p for p in (folder / split).glob("*") if p.name.endswith(SUFFIXES))  # a folder a split, as BEIR on the hub


def is_beir(folder: Path) -> bool:
    """Whether a folder has the BEIR layout: a corpus, queries and judgements."""
    return folder.is_dir() and bool(split_files(folder, "corpus"))


def rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """(line number from 1, row) for every row; a row that cannot be read comes as the error that says why.

    Raises:
        InputError: a file that cannot be read at all.
    """
    name = file.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            yield from _parquet(file)
        elif name.endswith((".csv", ".tsv")):
            with _open(file) as lines:
                yield from _csv(lines, "\t" if name.endswith(".tsv") else ",")
        elif name.endswith((".jsonl", ".json")):
            with _open(file) as lines:
                yield from _jsonl(lines)
        else:
            raise InputError(f"{file}: unknown kind of file: give one of {', '.join(SUFFIXES)}")
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read ({_first_line(error)}): it may be incomplete, copy it again") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb")  # type: ignore[return-value]


def _jsonl(lines: IO[bytes]) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            row = json.loads(text)
        except UnicodeDecodeError as error:
            yield number, RowError(None, f"is not valid UTF-8 (byte {error.start + 1}): mend its encoding, or on_bad_row=skip")
        except (ValueError, RecursionError) as error:  # ValueError: also whole numbers of thousands of digits
            yield number, RowError(None, f"is not JSON ({error}): write one object a line, or on_bad_row=skip")
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                yield number, RowError(None, f"holds {row!r:.40}, not an object: write {{…}} a line, or on_bad_row=skip")


def _csv(lines: IO[bytes], delimiter: str) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    decoded = (line.decode("utf-8-sig" if i == 0 else "utf-8", "surrogateescape") for i, line in enumerate(lines))
    reader = csv.DictReader(decoded, delimiter=delimiter, strict=True)  # else an open quote swallows the rest of the file
    while True:
        start = reader.reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            kind = "csv" if delimiter == "," else "tsv"
            yield start, RowError(None, f"is not {kind} ({error}): mend its quotes, or on_bad_row=skip")
            continue
        number, extra = reader.line_num, row.pop(None, None)
        if extra is not None:
            yield number, RowError(None, f"has {len(extra)} values more than the header: quote values that hold {delimiter!r}")
        else:
            yield number, {k: v for k, v in row.items() if v is not None}


def _parquet(file: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(file, memory_map=True).iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as parquet ({_first_line(error)}): copy it again") from error

"""Read the rows of data sets by shards: a file, a span of its rows, or a BEIR folder, each a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from acge_lightning.data.readers import Span, spans
from acge_lightning.data.records import as_label
from acge_lightning.errors import InputError
from acge_lightning.files.digest import file_sha256
from acge_lightning.mining.cleaning.training_rows import RECORDS, DataFiles, ReadingSettings, Rows, read_rows
from acge_lightning.mining.engine.shards import Run, in_process

Job = tuple[DataFiles, tuple[Path, ...]]  # a data set, and those of its files that are read
_TYPES = {
    "str": pa.large_string(),
    "float": pa.float64(),
    "int": pa.int64(),
    "tuple[str, ...]": pa.large_list(pa.large_string()),
}


def read_datasets(
    jobs: Sequence[Job], settings: ReadingSettings, digests: Mapping[str, Mapping[str, str]], run: Run = in_process
) -> Iterator[Rows]:
    """Read rows of data sets, in their order.

    Args:
        jobs: data sets, and which of their files are read.
        settings: how they are read.
        digests: of `output.digests`: files that have others once they are read are an error.
        run: what works on shards.

    Raises:
        InputError: as `read_rows`, or a file has changed.
    """
    shards = [(number, shard) for number, job in enumerate(jobs) for shard in _shards(*job, digests)]
    reading = {**vars(settings), "labels": {as_label(word): value for word, value in settings.labels.items()}}
    read = run(read_table, (pa.table({"shard": [json.dumps(shard)]}) for _, shard in shards), reading=reading)
    tables = zip([number for number, _ in shards], read, strict=True)
    for number, numbered in groupby(tables, key=lambda item: item[0]):
        data, files = jobs[number]
        yield _joined(data, files, [table for _, table in numbered])


def _shards(data: DataFiles, files: tuple[Path, ...], digests: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """Describe the shards of a data set as plain data."""
    digest_of = digests[data.name]
    dataset = {"family": data.family, "name": data.name, "source": str(data.source) if data.corpus else ""}
    if data.corpus is not None:
        yield {**dataset, "files": [str(file) for file in files], "span": None, "digests": digest_of}
        return
    for file in files:
        for span in spans(file):
            yield {**dataset, "files": [str(file)], "span": span, "digests": {str(file): digest_of[str(file)]}}


def read_table(table: pa.Table, reading: Mapping[str, Any]) -> pa.Table:
    """Read a shard of rows.

    Args:
        table: one row, the shard as JSON.
        reading: of `ReadingSettings`.

    Returns:
        A row each: its fields, `file`, `line` and `other` (UTF-8, with halves of surrogate pairs); in the metadata `files`,
        `unread` and `neutral` as `Rows` has them.
    """
    shard = json.loads(table["shard"][0].as_py())
    files = tuple(Path(file) for file in shard["files"])
    data = DataFiles(shard["family"], shard["name"], Path(shard["source"]) if shard["source"] else files, files, ())
    span: Span | None = tuple(shard["span"]) if shard["span"] else None
    with TemporaryDirectory() as temporary:
        rows = read_rows(data, files, ReadingSettings(**reading), Path(temporary) / "bad.jsonl", span)
    for name, digest in shard["digests"].items():
        if file_sha256(Path(name)) != digest:
            raise InputError(f"{name} has changed while it was read: nothing is written, clean it again")
    types = {field.name: _TYPES[str(field.type)] for field in fields(RECORDS[data.family]) if field.name in rows.columns}
    columns = {name: pa.array(rows.columns[name], kind) for name, kind in types.items()}
    other = [None if text is None else text.encode(errors="surrogatepass") for text in rows.other]
    columns |= {"file": pa.array(rows.file), "line": pa.array(rows.line), "other": pa.array(other, pa.large_binary())}
    about = {"files": [str(file) for file in rows.files], "unread": rows.unread, "neutral": rows.neutral}
    return pa.table(columns, metadata={"about": json.dumps(about)})


def _joined(data: DataFiles, files: tuple[Path, ...], tables: Sequence[pa.Table]) -> Rows:
    """Make rows of the tables of their shards."""
    about = [json.loads(table.schema.metadata[b"about"]) for table in tables]
    read = tuple(Path(file) for file in about[0]["files"]) if data.corpus is not None else files
    number = {str(file): i for i, file in enumerate(read)}
    joined = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    lengths = [len(table) for table in tables]
    first = np.repeat([number[facts["files"][0]] for facts in about], lengths)
    columns = {name: joined[name].to_pylist() for name in joined.column_names if name not in ("file", "line", "other")}
    for name in {"positive", "negative"} & set(columns):
        columns[name] = [tuple(texts) for texts in columns[name]]
    other = [None if text is None else text.decode(errors="surrogatepass") for text in joined["other"].to_pylist()]
    return Rows(
        data,
        columns,
        (first + joined["file"].to_numpy()).astype(np.int32),
        joined["line"].to_numpy().astype(np.int64),
        read,
        other,
        [row for facts in about for row in facts["unread"]],
        sum(facts["neutral"] for facts in about),
    )

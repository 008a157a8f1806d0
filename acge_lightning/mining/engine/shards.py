"""Run pure functions over tables of rows, shard by shard; results are written whole and kept until the run has ended well."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from acge_lightning.errors import InputError
from acge_lightning.files.atomic import lock, sweep, whole
from acge_lightning.mining.engine.local import cores, local_map
from acge_lightning.mining.engine.ray import ray_map

ENGINES = ("serial", "local", "ray")
Function = Callable[..., pa.Table]
_ROWS, _BYTES = 10_000, 4_000_000  # of a shard, at most
_MADE_BY = ("acge-lightning", "numpy", "opencc", "pyarrow", "rapidfuzz", "rensa", "torch", "transformers")
_CALL, _LOGGED = b"call", b"logged"  # keys of a table's metadata


class Run(Protocol):
    """Calls a function of a module on tables, each a shard of rows, and yields the tables that it returns, in order."""

    def __call__(
        self, function: Function, tables: Iterable[pa.Table], /, shared: pa.Table | None = None, **settings: Any
    ) -> Iterator[pa.Table]:
        """Call `function(table, **settings)`, with `shared=shared` where there is one, on each of the tables.

        Args:
            function: of a module. What it returns depends on its arguments alone.
            tables: are asked for one by one.
            shared: a large table that all of them need.
            settings: plain data, as JSON has it.
        """


def in_process(
    function: Function, tables: Iterable[pa.Table], /, shared: pa.Table | None = None, **settings: Any
) -> Iterator[pa.Table]:
    """Call a function on tables, one after the other, here: the `Run` of the serial engine.

    >>> [table.num_rows for table in in_process(pa.Table.slice, [pa.table({"n": [1, 2, 3]})], offset=1)]
    [2]
    """
    more = {} if shared is None else {"shared": shared}
    return (function(table, **settings, **more) for table in tables)


def tables(table: pa.Table, rows: int = _ROWS, size: int = _BYTES) -> Iterator[pa.Table]:
    """Cut a table into shards, whatever works on them: of at most so many rows, and bytes unless one row has more.

    >>> [len(shard) for shard in tables(pa.table({"n": range(5)}), rows=2)]
    [2, 2, 1]
    """
    for start in range(0, len(table), rows):
        yield from _halves(table.slice(start, rows), size)


def _halves(table: pa.Table, size: int) -> Iterator[pa.Table]:
    if len(table) < 2 or table.nbytes <= size:
        yield table
    else:
        yield from _halves(table.slice(0, len(table) // 2), size)
        yield from _halves(table.slice(len(table) // 2), size)


@contextmanager
def open_engine(name: str, out: str | Path, workers: int | None = None, address: str | None = None) -> Iterator[Run]:
    """Start an engine.

    Shards of `local` and `ray` come to a folder beside the output, `.<out>.work`. Their names are digests of the function, the
    rows, the settings and the versions of the libraries: a run that was killed, started again with any of the two, does the
    shards that are not there, and other inputs or settings never meet old results. The folder is removed when the block ends
    well; it stays if it does not.

    Args:
        name: `serial`: this process, and no folder; `local`: processes of this machine; `ray`: a cluster.
        out: the output.
        workers: processes of `local`, and of a cluster that `ray` starts here; None: as many as there are cores.
        address: of a cluster of Ray's that runs; None starts one here.

    Yields:
        What runs functions on shards.

    Raises:
        InputError: an unknown engine, no workers, Ray is not installed, or another run with this output goes on.
    """
    if name not in ENGINES:
        raise InputError(f"engine={name} is unknown: choose from {', '.join(ENGINES)}")
    if workers is not None and (type(workers) is not int or workers < 1):
        raise InputError(f"workers={workers} must be a whole number of at least 1, or null for as many as there are cores")
    if name == "serial":
        yield in_process
        return
    count = workers or cores()
    out = Path(os.path.realpath(Path(out).expanduser()))
    folder = out.with_name(f".{out.name}.work")
    try:
        with lock(folder / "lock", wait=False):
            sweep(folder)
            with local_map(count) if name == "local" else ray_map(count, address) as mapped:
                yield partial(_run, folder, mapped)
            shutil.rmtree(folder)
    finally:
        with suppress(OSError):  # it holds shards, or is gone
            folder.rmdir()


@dataclass(frozen=True)
class _Shard:
    """A call that a worker does in a folder: of a function, on a table in a file, whose result comes to another file."""

    function: Function
    given: Path
    result: Path
    name: str
    folder: str

    def __str__(self) -> str:
        return self.name


def _run(
    folder: Path,
    mapped: Callable[[Callable[[_Shard], None], Iterable[_Shard]], Iterator[None]],
    function: Function,
    tables: Iterable[pa.Table],
    /,
    shared: pa.Table | None = None,
    **settings: Any,
) -> Iterator[pa.Table]:
    """Yield the results in order, of which those that lie in the folder are not computed again."""
    call: dict[str, Any] = {
        "function": f"{function.__module__}.{function.__qualname__}",
        "settings": settings,
        "made_by": _versions(),
    }
    call["shared"] = None if shared is None else _write_shared(folder, shared)
    waiting: deque[tuple[_Shard, bool]] = deque()  # and whether its result was there
    told: set[str] = set()

    def missing() -> Iterator[_Shard]:
        for number, table in enumerate(tables):
            content = _content(table.replace_schema_metadata({_CALL: json.dumps(call, sort_keys=True)}))
            path, name = folder / _digest(content), f"shard {number} of {function.__name__}"
            shard = _Shard(function, path.with_suffix(".given"), path.with_suffix(".result"), name, os.getcwd())
            waiting.append((shard, _is_whole(shard.result)))
            if not waiting[-1][1]:
                with whole(shard.given) as draft:
                    draft.write_bytes(content)
                yield shard

    def result() -> pa.Table:
        shard = waiting.popleft()[0]
        shard.given.unlink(missing_ok=True)
        table = _read(shard.result)
        _tell(json.loads(table.schema.metadata[_LOGGED]), told)
        return table

    try:
        for _ in mapped(_work, missing()):
            while waiting[0][1]:
                yield result()
            yield result()
        while waiting:
            yield result()
    except Exception as error:
        _tell(getattr(error, "logged", []), told)
        raise


def _work(shard: _Shard) -> None:
    """Call the function of a shard, and write its result; what an error was preceded by in the log goes with it."""
    if shard.result.is_file():  # a worker that was killed has written it
        return
    try:
        table = _read(shard.given)
    except FileNotFoundError:
        if shard.result.is_file():  # another shard of equal rows is done meanwhile, and this file with it
            return
        raise
    call = json.loads(table.schema.metadata[_CALL])
    more = {} if call["shared"] is None else {"shared": _read_shared(shard.given.with_name(call["shared"]))}
    with chdir(shard.folder), _logged() as logged:
        result = shard.function(table.replace_schema_metadata(None), **call["settings"], **more)
    metadata = {**(result.schema.metadata or {}), _LOGGED: json.dumps(logged)}
    with whole(shard.result) as draft:
        _write(draft, result.replace_schema_metadata(metadata))


# ---- files


def _content(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _write(file: Path, table: pa.Table) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read(file: Path) -> pa.Table:
    return pa.ipc.open_file(file.read_bytes()).read_all()


def _is_whole(file: Path) -> bool:
    """Whether a result is there; one that cannot be read is deleted."""
    try:
        _read(file)
    except FileNotFoundError:
        return False
    except (OSError, pa.ArrowException):
        file.unlink()
        return False
    return True


def _write_shared(folder: Path, table: pa.Table) -> str:
    """Write a table that many shards need; return the name of its file."""
    content = _content(table)
    file = folder / f"{_digest(content)}.shared"
    if not file.is_file():
        with whole(file) as draft:
            draft.write_bytes(content)
    return file.name


@lru_cache(maxsize=1)
def _read_shared(file: Path) -> pa.Table:
    """Map a table that many shards need, so that all workers of a machine share its memory."""
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source.read_buffer()).read_all()


def _versions() -> dict[str, str]:
    """Versions of what results depend on."""
    versions = {}
    for name in _MADE_BY:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


# ---- the log


@contextmanager
def _logged() -> Iterator[list[tuple[str, int, str]]]:
    """Collect what the package logs in the block, rather than have each worker print it."""
    records: list[tuple[str, int, str]] = []
    logger, handler = logging.getLogger("acge_lightning"), logging.Handler()
    handler.emit = lambda record: records.append((record.name, record.levelno, record.getMessage()))  # type: ignore[method-assign]
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield records
    except Exception as error:
        error.logged = records  # type: ignore[attr-defined]
        raise
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _tell(records: Iterable[Sequence[Any]], told: set[str]) -> None:
    """Log what workers have logged, each message once."""
    for name, level, message in records:
        if message not in told:
            told.add(message)
            logging.getLogger(name).log(level, "%s", message)

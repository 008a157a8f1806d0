"""Call a function on items in several processes of this machine: results in order, few items at a time, workers replaced."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from acge_lightning.errors import InputError

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 2  # items in flight beyond the number of workers, so that no worker waits
_TRIES = 3  # of an item alone, after a worker was killed
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def local_map(workers: int) -> Iterator[Callable[[Callable[[T], R], Iterable[T]], Iterator[R]]]:
    """Start workers, and yield what maps a function over items in them; they end with the block, or with this process.

    Workers import the script that starts them: what it runs stands under `if __name__ == "__main__"`. Items and results should
    be small, such as names of files: a worker that is killed while it passes on a large one may leave half of it in the pipe,
    on which all others wait.

    Args:
        workers: processes. Each has its share of the cores for threads, unless the environment says how many.

    Yields:
        A function of (function, items): results in the order of the items. The function is one of a module. It raises what the
        function raises for the first item that fails, and an InputError that names the item if workers are killed with it.
    """
    pool = _Pool(workers)
    try:
        yield pool.map
    finally:
        pool.close()


class _Pool:
    """Executors, one after the other, of which one is in use; a pipe, which nobody writes to, ends with this process."""

    def __init__(self, workers: int):
        self._workers = workers
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        reader, self._lifeline = context.Pipe(duplex=False)
        threads = max(1, cores() // self._workers)
        self._executor = ProcessPoolExecutor(self._workers, context, _begin, (reader, threads))

    def close(self) -> None:
        """End the workers, whatever they do."""
        self._lifeline.close()
        self._executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the results in the order of the items."""
        waiting: deque[tuple[T, Future[R]]] = deque()
        left = iter(items)
        while True:
            for item in left:
                waiting.append((item, self._submit(function, item)))
                if len(waiting) >= self._workers + _AHEAD:
                    break
            if not waiting:
                return
            if isinstance(waiting[0][1].exception(), BrokenProcessPool):
                waiting = self._again(function, waiting)
            yield waiting.popleft()[1].result()

    def _submit(self, function: Callable[[T], R], item: T) -> Future[R]:
        try:
            return self._executor.submit(function, item)
        except BrokenProcessPool as error:  # a worker was killed while it had nothing to do
            failed: Future[R] = Future()
            failed.set_exception(error)
            return failed

    def _again(self, function: Callable[[T], R], waiting: Iterable[tuple[T, Future[R]]]) -> deque[tuple[T, Future[R]]]:
        """Work on the items that were in flight when a worker was killed, one at a time: it shows which of them kills it."""
        done: deque[tuple[T, Future[R]]] = deque()
        self._restart()
        for item, future in waiting:
            is_lost = isinstance(future.exception(), BrokenProcessPool)
            done.append((item, self._alone(function, item) if is_lost else future))
        return done

    def _alone(self, function: Callable[[T], R], item: T) -> Future[R]:
        for _ in range(_TRIES):
            future = self._submit(function, item)
            wait([future])
            if not isinstance(future.exception(), BrokenProcessPool):
                return future
            self._restart()
        raise InputError(
            f"{item}: the process that worked on it was killed {_TRIES} times, with nothing else running: most often there is "
            "too little memory; give the machine more, or shorten the longest rows"
        )

    def _restart(self) -> None:
        self.close()
        self._start()


def _begin(lifeline: Connection, threads: int) -> None:
    """Prepare a worker: Ctrl-C is for the process that started it, and it ends when that one closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _THREADS:
        os.environ.setdefault(name, str(threads))
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> Any:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)

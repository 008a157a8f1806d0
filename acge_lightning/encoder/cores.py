"""Runs a job on several CPU cores at a time, one item on each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_THREAD_COUNT = threading.Lock()  # held while new threads are given one core in place of all


def map_on_cores(job: Callable[[Tensor], Tensor], items: Sequence[Tensor]) -> list[Tensor]:
    """The results of a job for each item, in order; items run at the same time, each on one core.

    Cores that share an item wait for each other more. Items run one after the other, each on all cores, where a gradient is
    wanted, under autocast, and where there are fewer items than cores.
    """
    with _THREAD_COUNT:
        cores = torch.get_num_threads()
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or cores == 1 or len(items) < cores:
        return [job(item) for item in items]
    all_started = threading.Barrier(cores + 1)

    def begin() -> None:
        torch.get_num_threads()  # torch gives a thread its number when first asked, and would undo the next line later
        torch.set_num_threads(1)  # of this thread, and of all that meet torch from now on
        all_started.wait()

    with ThreadPoolExecutor(cores, initializer=begin) as threads:
        with _THREAD_COUNT:
            try:
                results = threads.map(torch.no_grad()(job), items)  # at least as many as cores, so that all threads start
                all_started.wait()
            except BaseException:
                all_started.abort()
                raise
            finally:
                torch.set_num_threads(cores)  # the threads of the pool keep to one
        return list(results)

"""Ends the whole run when one of its processes has died or hangs, so that no other device waits for it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.distributed_c10d import _get_default_store

from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
_EXIT_STATUS = 70  # exit status of a process that has lost another


class Peers(Callback):
    """Each process of a run on several devices gives a sign of life; one that misses those of another ends with status 70.

    Collective operations wait for all devices, some of them for half an hour, when one is gone. The signs travel through the
    store that the processes met in, from a thread of their own. What was saved last is what `resume=auto` goes on from.

    Args:
        limit: seconds without a sign after which a process counts as dead.

    Raises:
        InputError: a limit that is not above 0.

    YAML::

        peers: {_target_: acge_lightning.callbacks.Peers, limit: 60}
    """

    def __init__(self, limit: float = 60.0):
        if not limit > 0:
            raise InputError(f"callbacks.peers.limit={limit} must be above 0: give seconds")
        self.limit = limit
        self._runs = 0
        self._stop: threading.Event | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to give signs and to watch for them."""
        if trainer.world_size == 1:
            return
        self._runs += 1
        self._stop = threading.Event()
        store = dist.PrefixStore(f"alive/{self._runs}", _get_default_store().clone())  # type: ignore[attr-defined]  # torch's stub lacks it
        threading.Thread(target=self._watch, args=(trainer, store, self._stop), daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the others that this process is done."""
        if self._stop is not None:
            self._stop.set()
            self._stop = None

    def _watch(self, trainer: Trainer, store: dist.Store, stop: threading.Event) -> None:
        last_signs = {rank: ("", time.monotonic()) for rank in range(trainer.world_size) if rank != trainer.global_rank}
        beat = 0
        while True:
            done = stop.wait(self.limit / 10)
            beat += 1
            silence = threading.Timer(
                self.limit, self._end_process, (trainer, f"rank 0 has given no sign for {self.limit:g} s")
            )
            silence.daemon = True
            silence.start()  # the store lives in the process of rank 0
            try:
                store.set(str(trainer.global_rank), "done" if done else str(beat))
                if done:
                    return
                for rank, (last, _) in last_signs.items():
                    sign = store.get(str(rank)).decode() if store.check([str(rank)]) else last
                    if sign != last:
                        last_signs[rank] = (sign, time.monotonic())
            except RuntimeError as error:
                if not stop.is_set():
                    self._end_process(trainer, f"rank 0 is gone ({str(error).partition(chr(10))[0]:.80})")
                return
            finally:
                silence.cancel()
            silent = [
                r for r, (sign, seen_at) in last_signs.items() if sign != "done" and time.monotonic() - seen_at > self.limit
            ]
            if silent:
                self._end_process(trainer, f"rank {silent[0]} has given no sign for {self.limit:g} s")

    def _end_process(self, trainer: Trainer, why: str) -> None:
        """End this process, whatever it waits in, and those that it started."""
        _LOG.error("%s: the run ends; go on from its last checkpoint with resume=auto", why)
        logging.shutdown()
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
        os._exit(_EXIT_STATUS)

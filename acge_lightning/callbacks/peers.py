"""A process that died or hangs ends the whole run, instead of leaving the other devices to wait for it."""

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
_ALONE = 70  # exit status of a process that has lost another


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
        self._times = 0
        self._stop: threading.Event | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to give signs and to watch for them."""
        if trainer.world_size == 1:
            return
        self._times += 1
        self._stop = threading.Event()
        store = dist.PrefixStore(f"alive/{self._times}", _get_default_store().clone())
        threading.Thread(target=self._watch, args=(trainer, store, self._stop), daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nobody waits for this process any more."""
        if self._stop is not None:
            self._stop.set()
            self._stop = None

    def _watch(self, trainer: Trainer, store: dist.Store, stop: threading.Event) -> None:
        others = {rank: ("", time.monotonic()) for rank in range(trainer.world_size) if rank != trainer.global_rank}
        beat = 0
        while True:
            done = stop.wait(self.limit / 10)
            beat += 1
            silence = threading.Timer(self.limit, self._leave, (trainer, f"rank 0 has given no sign for {self.limit:g} s"))
            silence.daemon = True
            silence.start()  # the store lives in the process of rank 0
            try:
                store.set(str(trainer.global_rank), "done" if done else str(beat))
                if done:
                    return
                for rank, (last, _) in others.items():
                    sign = store.get(str(rank)).decode() if store.check([str(rank)]) else last
                    if sign != last:
                        others[rank] = (sign, time.monotonic())
            except RuntimeError as error:
                if not stop.is_set():
                    self._leave(trainer, f"rank 0 is gone ({str(error).partition(chr(10))[0]:.80})")
                return
            finally:
                silence.cancel()
            silent = [r for r, (sign, when) in others.items() if sign != "done" and time.monotonic() - when > self.limit]
            if silent:
                self._leave(trainer, f"rank {silent[0]} has given no sign for {self.limit:g} s")

    def _leave(self, trainer: Trainer, why: str) -> None:
        """End this process, whatever it waits in, and those that it started."""
        _LOG.error("%s: the run ends; go on from its last checkpoint with resume=auto", why)
        logging.shutdown()
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
        os._exit(_ALONE)

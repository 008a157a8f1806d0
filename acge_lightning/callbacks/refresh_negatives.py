"""Mines hard negatives again, time after time, with the encoder as it is then."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import reduce
from operator import add
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from acge_lightning.callbacks.progress import Progress
from acge_lightning.data.mined_negatives import MinedNegatives
from acge_lightning.data.mixture import MixtureDataModule
from acge_lightning.data.retrieval import RetrievalDataset
from acge_lightning.errors import InputError
from acge_lightning.mining.negatives.near_texts import NearTexts
from acge_lightning.mining.negatives.neighbours import DenseNeighbours
from acge_lightning.mining.negatives.refresh import RefreshCounts, RowQueries, Share, mine_rows, row_queries
from acge_lightning.mining.negatives.rules import Rules
from acge_lightning.terminal import show
from acge_lightning.training.optimized_module import OptimizedModule

_LOG = logging.getLogger(__name__)
_KEY = "callbacks.refresh_negatives"
_DEFAULTS: dict[str, Any] = {"negatives": 1, "relative_margin": 0.05, "near": 0.8, "sampling": "random"}
_RULES = {field.name for field in fields(Rules)} - {"rank_by", "denoise"}  # those are of a second scorer


class RefreshNegatives(Callback):
    """Mines hard negatives of the training rows every so many steps, with the encoder as it has become.

    Mined negatives come along with each query of a batch beside those that its row lists; of these the task's own `negatives`
    says how many come (0: mined ones alone). They are mined as `acge mine` does, from the documents of the task's corpus, or
    else from all texts of its training rows, at the full dim and with the prompts of the task. Never a negative is the query's
    own text, or a text that equals or nearly equals a positive of it in any split of any task of queries. The losses mask them
    where they are positives of another query of the batch, as they do with listed ones.

    Only the queries of the steps until the next refresh are mined for. Which negatives a batch has follows from its step, the
    seed and the weights at the last refresh: a checkpoint holds those that are in force, and a run that goes on from it ends
    with the weights of one that was never interrupted. Several devices share the work. A line says what each refresh gave, and
    the loggers get `refresh/negatives`, `refresh/without` (queries that have none), `refresh/new` (share of the negatives that
    the refresh before had not) and `refresh/seconds`.

    Args:
        every: optimizer steps.
        begin: step of the first refresh; no negatives are mined before it. 0: before the first step.
        tasks: names; by default all that train on queries with positives that are not lists to be ranked.
        max_documents: most texts that may become negatives, drawn anew at each refresh, and the positives of the queries; None:
            all.
        seed: of these draws, and of those of `sampling=random`.
        **rules: of `mining.Rules`: negatives (of a query; here 1 by default), range_min, range_max, absolute_margin,
            relative_margin (.05), max_score, min_score, near (.8), reference, sampling (random).

    Raises:
        InputError: values that cannot work, a task without queries, no task at all, or faiss, rapidfuzz or opencc is missing;
            at a checkpoint, other documents than it was trained with.

    Reference: ANCE (Xiong et al. 2021, arXiv 2007.00808). Differs: training waits for the negatives, where theirs goes on with
    those of an encoder some steps old, so that a run can be repeated; search is exact; the negatives, drawn from the best 100
    here and 200 there, obey margins and are no near duplicates of positives.

    YAML::

        refresh_negatives:
          _target_: acge_lightning.callbacks.RefreshNegatives
          every: 500
          begin: 500
          negatives: 1
          seed: ${seed}
    """

    def __init__(
        self,
        every: int = 500,
        begin: int = 0,
        tasks: Sequence[str] | None = None,
        max_documents: int | None = None,
        seed: int = 0,
        **rules: Any,
    ):
        for name, value, least in (("every", every, 1), ("begin", begin, 0), ("max_documents", max_documents, 1)):
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"{_KEY}.{name}={value!r} must be a whole number of at least {least}")
        if unknown := sorted(rules.keys() - _RULES):
            raise InputError(f"{_KEY}.{unknown[0]} is unknown: choose from {', '.join(sorted(_RULES))}")
        try:
            self.rules = Rules(seed=seed, **(_DEFAULTS | rules))
        except InputError as error:
            raise InputError(f"{_KEY}: {error}") from None
        self.every, self.begin, self.max_documents = every, begin, max_documents
        self.tasks = None if tasks is None else list(tasks)
        self.counts: dict[str, RefreshCounts] = {}
        self._step = -1  # of the negatives in force
        self._mined: dict[str, MinedNegatives] = {}
        self._digests: dict[str, str] = {}  # of what their numbers refer to
        self._restored_digests: Mapping[str, str] = {}
        self._is_restored = False
        self._source: dict[str, RowQueries] = {}
        self._run: tuple[Trainer, MixtureDataModule, OptimizedModule] | None = None

    # ---- before the first step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the tasks and what is judged in them, so that errors come before the first step."""
        if stage != "fit":
            return
        mixture = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        if not isinstance(mixture, MixtureDataModule):
            raise InputError(f"{_KEY} needs its data from a MixtureDataModule: give the Trainer one, of one task or several")
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            name = type(trainer.strategy).__name__
            raise InputError(f"{_KEY} needs whole weights on each device, and {name} divides them: use trainer.strategy=ddp")
        NearTexts([])
        DenseNeighbours(np.zeros((0, 1)), np.zeros((0, 1)))  # both say here which package is missing
        chosen = self._chosen(mixture)
        judged = [data for data in mixture.tasks.values() if isinstance(data, RetrievalDataset)]
        for data in judged:
            data.open()
        for name, data in chosen.items():
            others = [split for other in judged for split in other.opened_splits.values() if split is not data.train]
            others += [data.train.of_own_documents()] if data.exclude_own_id else []
            self._source[name] = source = row_queries(data.train, others)
            count = min(source.judged.candidate_count, self.max_documents or source.judged.candidate_count)
            if count <= self.rules.range_min:
                few = f"passes over all {count} texts of task {name}"
                raise InputError(f"{_KEY}.range_min={self.rules.range_min} {few}: lower it")
        self._digests = {name: _digest(data) for name, data in chosen.items()}
        self._step, self._mined, self._is_restored = -1, {}, False
        self._run = trainer, mixture, cast(OptimizedModule, pl_module)
        mixture.changes = self

    def _chosen(self, mixture: MixtureDataModule) -> dict[str, RetrievalDataset]:
        training, chosen = mixture.training_tasks, {}
        suited = [name for name, data in training.items() if isinstance(data, RetrievalDataset) and data.in_batch]
        for name in suited if self.tasks is None else self.tasks:
            data = training.get(name)
            if data is None:
                raise InputError(f"{_KEY}.tasks: {name} is no task that trains: choose from {', '.join(training)}")
            if not isinstance(data, RetrievalDataset):
                raise InputError(f"{_KEY}.tasks: {name} has no queries with positives (its family is {data.family})")
            chosen[name] = data
        if not chosen:
            remedy = "add one, for example task=[triplets], or leave the callback out"
            raise InputError(f"{_KEY}: no task trains on queries with positives (its family is retrieval): {remedy}")
        return chosen

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the run ends before the first refresh."""
        steps = trainer.estimated_stepping_batches
        if steps <= self.begin:
            _LOG.warning("%s.begin=%d, and the run ends after %d steps: it mines nothing", _KEY, self.begin, steps)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the data as it was."""
        if self._run is not None:
            _, mixture, _ = self._run
            mixture.changes, self._run = None, None
            for name in self._source:
                self._data(mixture, name).mined = None
            self._source = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the data as it was."""
        self.teardown(trainer, pl_module, "fit")

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The negatives that are in force."""
        mined = {
            name: {"rows": torch.from_numpy(negatives.rows), "texts": torch.from_numpy(negatives.texts)}
            for name, negatives in self._mined.items()
        }
        return {"step": self._step, "digests": dict(self._digests), "mined": mined}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take those of a checkpoint, whose numbers are checked before they are used."""
        self._step, self._is_restored = int(state_dict["step"]), True
        self._mined = {
            str(name): MinedNegatives(arrays["rows"].numpy(), arrays["texts"].numpy())
            for name, arrays in state_dict["mined"].items()
        }
        self._restored_digests = state_dict["digests"]

    def _check_restored(self, mixture: MixtureDataModule) -> None:
        """Forget the negatives of a checkpoint if they are of other rows than those of the steps to come.

        Raises:
            InputError: they are of other documents, and data that changed is not allowed.
        """
        self._is_restored = False
        if self._step < 0:
            return
        changed = [name for name, digest in self._digests.items() if self._restored_digests.get(name) != digest]
        if changed and not mixture.resume_changed_data:
            remedy = "put the data back, or set resume_changed_data=true"
            raise InputError(f"task {changed[0]} has other texts since the checkpoint was written: {remedy}")
        rows = self._rows(mixture, self._step)
        if changed or not all(self._fits(name, rows.get(name)) for name in self._digests):
            self._step, self._mined = -1, {}

    def _fits(self, name: str, rows: np.ndarray | None) -> bool:
        mined = self._mined.get(name)
        if rows is None or mined is None:
            return rows is None and mined is None
        shape = len(rows), self.rules.negatives
        count = len(self._source[name].numbers) and int(self._source[name].numbers.max()) + 1
        return np.array_equal(mined.rows, rows) and mined.texts.shape == shape and bool((mined.texts < count).all())

    # ---- during training

    def _due(self, step: int) -> int:
        """The step of the last refresh at or before a step; -1 for none."""
        return -1 if step < self.begin else step - (step - self.begin) % self.every

    def next_change(self, step: int) -> int:
        """The step of the next refresh."""
        return self.begin if step < self.begin else self._due(step) + self.every

    def prepare(self, step: int) -> None:
        """Mine, if the negatives of this step are not there; give the data those that are in force."""
        if self._run is None:
            raise InputError(f"{_KEY} is no callback of a run that trains")
        trainer, mixture, _ = self._run
        if self._is_restored:
            self._check_restored(mixture)
        due = self._due(step)
        if self._step != due:
            if due not in (-1, step):
                _LOG.warning("no negatives of step %d are there: they are mined with the encoder of step %d", due, step)
            self._mine(trainer, due)
        for name in self._source:
            self._data(mixture, name).mined = self._mined.get(name)

    def _rows(self, mixture: MixtureDataModule, due: int) -> dict[str, np.ndarray]:
        """The rows of the steps until the next refresh, by task."""
        return {name: rows for name, rows in mixture.rows_between(due, due + self.every).items() if name in self._source}

    def _mine(self, trainer: Trainer, due: int) -> None:
        assert self._run is not None
        _, mixture, module = self._run
        start, earlier = time.monotonic(), self._mined
        self._step, self._mined, self.counts = due, {}, {}
        if due < 0:
            return
        for name, rows in self._rows(mixture, due).items():
            source, encode = self._source[name], _encoder(trainer, module, self._data(mixture, name).prompts)
            candidates = self._drawn(source.judged.candidate_count, due)
            texts = source.judged.candidate_count if candidates is None else len(candidates)
            with _counting(trainer, f"mine {name}", len(np.unique(source.queries[rows])) + texts) as progress:
                given = source, rows, encode, self.rules, candidates, _share(trainer), progress
                self._mined[name], self.counts[name] = mine_rows(*given)
        self._tell(trainer, due, earlier, time.monotonic() - start)

    def _drawn(self, count: int, due: int) -> np.ndarray | None:
        """Int64[c] the texts that may become negatives at this refresh; None: all."""
        if self.max_documents is None or count <= self.max_documents:
            return None
        return np.sort(np.random.default_rng([self.rules.seed, due]).permutation(count)[: self.max_documents])

    def _tell(self, trainer: Trainer, due: int, earlier: Mapping[str, MinedNegatives], seconds: float) -> None:
        if not trainer.is_global_zero or not self.counts:
            return
        counts = reduce(add, self.counts.values())
        values = {"negatives": counts.negatives, "without": counts.without, "seconds": seconds}
        pairs = [mined.new_since(earlier[name]) for name, mined in self._mined.items() if name in earlier]
        new, compared = (sum(pair[i] for pair in pairs) for i in range(2))
        if compared:
            values["new"] = new / compared
        said = f" ({new / compared:.0%} of them new)" if compared else ""
        show(f"Step {due}, mined in {seconds:.1f} s{said}: {counts}")
        for logger in trainer.loggers:
            logger.log_metrics({f"refresh/{key}": float(value) for key, value in values.items()}, step=trainer.global_step)

    @staticmethod
    def _data(mixture: MixtureDataModule, name: str) -> RetrievalDataset:
        return cast(RetrievalDataset, mixture.tasks[name])


def _digest(data: RetrievalDataset) -> str:
    """What the numbers of mined negatives refer to: the training rows, and the texts that may be negatives."""
    candidate_ids = np.ascontiguousarray(data.train.candidate_ids)
    return hashlib.sha256(data.fingerprint().encode() + candidate_ids.tobytes()).hexdigest()


def _encoder(trainer: Trainer, module: OptimizedModule, prompts: Mapping[str, str]) -> Callable[[list[str], str], np.ndarray]:
    """The encoder as it is now, at the precision of the run."""
    encoder = module.encoder

    def encode(texts: list[str], role: str) -> np.ndarray:
        with trainer.precision_plugin.forward_context():
            vectors = encoder.encode(texts, encoder.dim, prompt=prompts.get(role), batch_tokens=module.batch_tokens)
        return vectors.numpy()

    return encode


def _share(trainer: Trainer) -> Share:
    """The part of this process among those of the other devices."""
    if trainer.world_size == 1:
        return Share()

    def total(array: np.ndarray) -> np.ndarray:
        own = torch.from_numpy(array).to(trainer.strategy.root_device)
        return trainer.strategy.reduce(own, reduce_op="sum").cpu().numpy()

    return Share(trainer.global_rank, trainer.world_size, total)


@contextmanager
def _counting(trainer: Trainer, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar, if the run shows one."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, Progress) and trainer.is_global_zero:
        with bar.counting(name, total) as progress:
            yield progress
    else:
        yield lambda count: None

"""Several processes have the gradient that one process has of the same global batch."""

import csv
import json
import os
import socket
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import acge_lightning
from acge_lightning.data import (
    ClassificationDataModule,
    ClusteringDataModule,
    MixtureDataModule,
    PairDataModule,
    RerankingDataModule,
    RetrievalDataModule,
    STSDataModule,
    UnlabelledDataModule,
)
from acge_lightning.data.batch import TextBatch
from acge_lightning.data.collate import Collate
from acge_lightning.data.loaders import EvaluationTexts, StepDataset
from acge_lightning.data.task import Task
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.training.embedding_module import EmbeddingModule
from acge_lightning.training.gather import gather_batch

SETTINGS = [(matryoshka, tokens) for matryoshka in (None, {"dims": [16, 8, 4]}) for tokens in (100_000, 40)]
FAMILIES = {
    "sts": (STSDataModule, 24),
    "pair": (PairDataModule, 24),
    "classification": (ClassificationDataModule, 24),
    "retrieval": (RetrievalDataModule, 24),
    "reranking": (RerankingDataModule, 8),
    "unlabelled": (UnlabelledDataModule, 24),
}


def write_faq(file, texts):
    """Questions that share five answers, and negatives that are other rows' answers, or come again on another device."""
    answers, others = texts[1000:1005], [*texts[2000:2003], *texts[1000:1002]]
    rows = [
        {"query": texts[i], "positive": answers[i % 5], "negative": [others[(i + k) % 5] for k in range(2)]} for i in range(96)
    ]
    rows = [row | {"negative": [text for text in row["negative"] if text != row["positive"]]} for row in rows]
    if not file.is_file():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def made(cache):
    """Data, sampler and a small encoder: the same in every process."""
    data = {name: kind(f"sample:{name}/sample_zh", batch_size=size, cache_dir=cache) for name, (kind, size) in FAMILIES.items()}
    data["sts"].setup()
    faq = write_faq(cache / "faq.jsonl", list(dict.fromkeys(data["sts"].train_texts())))
    data["faq"] = RetrievalDataModule(faq, batch_size=24, negatives=2, holdout=0.0, cache_dir=cache)
    mixture = MixtureDataModule(data)
    mixture.setup()
    torch.manual_seed(0)
    encoder = static(train_vocabulary(list(data["sts"].train_texts()), "bpe", 1500), dim=16).double().eval()
    return data, mixture.sampler, encoder


def gradients(data, sampler, encoder, rank, world, average):
    """Setting, task -> gradient of its first batch; `average` makes one of the ranks' gradients, as DDP does."""
    steps = {}
    for step in range(len(sampler)):
        steps.setdefault(sampler[step].task, step)
    collates = {name: Collate(name, d, encoder) for name, d in data.items()}
    found = {}
    for matryoshka, tokens in SETTINGS:
        module = EmbeddingModule(encoder, {n: Task(d) for n, d in data.items()}, matryoshka, batch_tokens=tokens)
        module.recompute = tokens == 40
        for name, step in steps.items():
            batch = StepDataset(sampler, collates, rank, world)[step]
            encoder.zero_grad()
            vectors, labels, ids = gather_batch(module.embed(batch), batch.labels, batch.ids)
            assert sum(map(len, vectors)) == sum(map(len, ids))
            module.losses[name](vectors, labels, ids).backward()
            gradient = encoder.backbone.embedding.weight.grad.clone()
            average(gradient)
            found[bool(matryoshka), tokens, name] = gradient
    return found


def process(rank, world, port, cache, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)

    def average(gradient):
        dist.all_reduce(gradient)
        gradient /= world

    found = gradients(*made(cache), rank, world, average)
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.heavy)])
def test_the_gradient_is_that_of_one_process(world, tmp_path, cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, sampler, encoder = made(cache)
    expected = gradients(data, sampler, encoder, 0, 1, lambda gradient: None)
    mp.spawn(process, (world, port, cache, str(tmp_path / "found.pt")), nprocs=world)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found.keys() == expected.keys()
    assert len(found) == len(SETTINGS) * (len(FAMILIES) + 1)
    for key, gradient in expected.items():
        assert gradient.norm() > 0, key
        assert (found[key] - gradient).norm() / gradient.norm() < 1e-10, key


def test_in_one_process_nothing_changes():
    vectors, ids = (torch.randn(3, 2), torch.randn(3, 2)), (torch.arange(3), torch.arange(3))
    found = gather_batch(vectors, None, ids)
    assert found[0][1] is vectors[1]
    assert found[1] is None


def test_ranks_share_the_global_batch_of_one_process(cache):
    """Worlds of 1, 2 and 4: disjoint rows, the same global batch."""
    data, sampler, encoder = made(cache)
    collates = {name: Collate(name, d, encoder) for name, d in data.items()}
    for step in range(12):
        whole = StepDataset(sampler, collates, 0, 1)[step]
        for world in (2, 4):
            parts: list[TextBatch] = [StepDataset(sampler, collates, rank, world)[step] for rank in range(world)]
            assert {part.task for part in parts} == {whole.task}
            assert len({len(part) for part in parts}) == 1
            for column in range(min(2, len(whole.ids))):  # with repeats: a row that two devices had would be there once more
                together = np.sort(np.concatenate([part.ids[column].numpy() for part in parts]))
                assert np.array_equal(together, np.sort(whole.ids[column].numpy()))


def validating(rank, world, port, cache, folder, out):
    """Scores the dev split of `folder` in one of several processes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    encoder = static(train_vocabulary(["a b c d e f"] * 20, "bpe", 100), dim=8)
    kinds = {"classes": ClusteringDataModule, "pairs": STSDataModule, "search": RetrievalDataModule}
    data = {name: kind(f"{folder}/{name}", cache_dir=f"{cache}/{rank}") for name, kind in kinds.items()}
    module = EmbeddingModule(encoder, {name: Task(d) for name, d in data.items()})
    scores = {}
    module.log_dict = lambda values, **others: scores.update({key: float(value) for key, value in values.items()})
    module.log = lambda key, value, **others: scores.update({key: float(value)})
    module.on_validation_epoch_start()
    for name, d in data.items():
        batches = EvaluationTexts(d.evaluation("dev"), Collate(name, d, encoder), rank, world)
        assert len(batches)
        for i in range(len(batches)):
            module.validation_step(batches[i], i)
    module.on_validation_epoch_end()
    torch.save(scores, f"{out}/{world}.{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_a_process_without_texts_takes_part_in_the_scores(cache, monkeypatch):
    """It goes to the gathering, where the others wait for it; alone, the metric says that it has seen no text."""
    data, _, encoder = made(cache)
    module = EmbeddingModule(encoder, {"sts": Task(data["sts"])})
    with pytest.raises(InputError, match="no task has a dev split"):
        module.on_validation_epoch_end()
    monkeypatch.setattr("acge_lightning.training.embedding_module.any_rank", lambda flags, device: [True for _ in flags])
    with pytest.raises(InputError, match="has seen no texts"), pytest.warns(UserWarning, match="was called before"):
        module.on_validation_epoch_end()


@pytest.mark.heavy
def test_more_processes_than_texts_give_the_scores_of_one(tmp_path):
    """Three texts and four processes: each takes part, none waits for another."""
    home = {"classes": [{"text": "a b", "label": "x"}, {"text": "c d", "label": "y"}, {"text": "a c", "label": "x"}]}
    home["pairs"] = [{"text1": "a b", "text2": "c d", "score": 1}, {"text1": "a b", "text2": "a c", "score": 2}]
    home["search"] = [{"query": "a b", "positive": "a c", "negative": "a c"}, {"query": "a b", "positive": "c d"}]
    for name, rows in home.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, str(tmp_path / "cache"), str(tmp_path), str(tmp_path))
    validating(0, 1, *arguments)
    mp.spawn(validating, (4, *arguments), nprocs=4)
    expected = torch.load(tmp_path / "1.0.pt")
    assert {"val/classes/v_measure", "val/pairs/spearman", "val/search/ndcg", "val/mean"} < expected.keys()
    for rank in range(4):
        assert torch.load(tmp_path / f"4.{rank}.pt") == pytest.approx(expected, abs=1e-6)


def logged(file):
    """Step -> the scores that the evaluation callback gave there; it leaves steps out where time is short."""
    with file.open() as handle:
        rows = list(csv.DictReader(handle))
    names = [name for name in rows[0] if name.startswith("eval/")]
    scored = [(int(row["step"]), {name: float(row[name]) for name in names if row[name]}) for row in rows]
    return {step: scores for step, scores in scored if scores}


@pytest.mark.heavy
def test_two_processes_train_the_same_encoder(tmp_path, cache):
    """A whole run of the program on two gloo processes, against one of a single process."""
    import subprocess
    import sys
    from pathlib import Path

    from acge_lightning import load

    program = str(Path(__file__).parents[2] / "train.py")
    sample = Path(acge_lightning.__file__).parent / "sample"
    watch = ["+callbacks@callbacks=evaluation", f"callbacks.evaluation.folder={sample}", "callbacks.evaluation.every=10"]
    watch += ["callbacks.evaluation.share=1.0"]
    fixed = [*watch, "task=[sample_sts,sample_retrieval]", "optim=adamw_static", "optim.optimizer.lr=1.0e-3", "encoder.dim=32"]
    fixed += ["trainer.accelerator=cpu", f"paths.cache_dir={cache}", "callbacks.progress=null"]
    results = []
    for name, extra in (("one", []), ("two", ["trainer.devices=2", "+trainer.strategy=ddp"])):
        command = [sys.executable, program, *fixed, f"name={name}", *extra]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("The model is in") == 1
        (folder,) = (tmp_path / "outputs" / name).iterdir()
        scores = json.loads((folder / "result.json").read_text())
        scores["during"] = logged(folder / "csv" / "version_0" / "metrics.csv")
        results.append((scores, load(folder / "export").encode(["怎么退货？", "今天天气很好"])))
    (one, vectors), (two, others) = results
    both = one["during"].keys() & two["during"].keys()
    assert both
    for step in both:
        assert len(one["during"][step]) == 7
        assert two["during"][step] == pytest.approx(one["during"][step], abs=2e-3)
    for when in ("before", "after"):
        assert two[when] == pytest.approx(one[when], abs=2e-3)
    assert (vectors - others).abs().max() < 1e-3

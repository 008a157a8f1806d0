"""`fisher` and `acge fisher`: from tasks to an anchor; the same in chunks, on two processes and after an interruption."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from acge_lightning.continual.anchor import Anchor
from acge_lightning.continual.fisher import fisher, mean_of_rows, write_anchor
from acge_lightning.continual.sample_gradients import SampleGradients
from acge_lightning.data import (
    ClassificationDataModule,
    RerankingDataModule,
    RetrievalDataModule,
    STSDataModule,
    UnlabelledDataModule,
)
from acge_lightning.data.task import Task
from acge_lightning.encoder.build import transformer
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.files.atomic import lock
from acge_lightning.losses.contrastive import InfoNCE

FAMILIES = {
    "sts": (STSDataModule, {}),
    "classification": (ClassificationDataModule, {}),
    "retrieval": (RetrievalDataModule, {}),
    "reranking": (RerankingDataModule, {}),
    "unlabelled": (UnlabelledDataModule, {"augment": "span_crop"}),
}
TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 64,
}
FEW = {"samples": 10, "pool": 60}


def made(cache):
    """Tasks and a small encoder: the same in every process."""
    tasks = {
        name: Task(kind(f"sample:{name}/sample_zh", max_train=200, cache_dir=cache, **more))
        for name, (kind, more) in FAMILIES.items()
    }
    torch.manual_seed(0)
    tokenizer = train_vocabulary(list(tasks["sts"].data.train_texts()), "wordpiece", 400)
    return tasks, transformer(tokenizer, TINY | {"model_type": "bert"}, max_length=24, dense=6).double()


@pytest.fixture(scope="module")
def parts(cache):
    tasks, encoder = made(cache)
    return tasks, encoder, fisher(encoder, tasks, **FEW)


def assert_same(found, expected, tolerance=1e-9):
    assert found.fisher.keys() == expected.fisher.keys() == found.theta.keys()
    top = max(float(x.max()) for x in expected.fisher.values())
    for name, values in expected.fisher.items():
        assert float((found.fisher[name] - values).abs().max()) <= tolerance * top, name
        assert torch.equal(found.theta[name], expected.theta[name])


def test_the_anchor_holds_weights_importance_and_where_they_come_from(parts):
    tasks, encoder, anchor = parts
    assert anchor.check(dict(encoder.named_parameters())) == []
    assert all(torch.equal(anchor.theta[name], p) for name, p in encoder.named_parameters())
    assert encoder.training
    assert mean_of_rows(anchor.fisher) == pytest.approx(1)
    assert anchor.meta["encoder"] == encoder_hash(encoder)
    assert anchor.meta["tasks"].keys() == tasks.keys()
    told = anchor.meta["tasks"]["reranking"]
    assert told["data"]["path"] == "sample:reranking/sample_zh"
    assert told["loss"] == {"class": "InfoNCE", "temperature": 0.05, "directions": ["query_to_doc"], "partition": "joint"} | {
        "in_batch": False
    }
    assert (told["samples"], told["pool"]) == (10, 60)
    unseen = (anchor.fisher["backbone.embeddings.word_embeddings.weight"] == 0).all(1).sum()
    assert 0 < unseen < 400


def test_every_task_has_the_same_say(parts):
    """Each task's share is normalised before the mean, so a loss of large gradients does not drown the others."""
    tasks, encoder, together = parts
    alone = [fisher(encoder, {name: task}, **FEW) for name, task in tasks.items()]
    mean = {name: sum(a.fisher[name] for a in alone) for name in together.fisher}
    scale = mean_of_rows(mean)
    assert_same(Anchor(together.theta, {name: values / scale for name, values in mean.items()}, {}), together)


def test_temperature_does_not_change_the_scale(parts):
    tasks, encoder, _ = parts
    found = [fisher(encoder, {"retrieval": Task(tasks["retrieval"].data, InfoNCE(tau))}, **FEW) for tau in (0.05, 0.5)]
    means = [anchor.meta["tasks"]["retrieval"]["mean"] for anchor in found]
    assert means[0] > 20 * means[1]
    assert [mean_of_rows(anchor.fisher) for anchor in found] == pytest.approx([1, 1])


@pytest.mark.parametrize("estimator", ["true", "mas"])
def test_estimators_and_prefixes_run_on_data(parts, estimator):
    tasks, encoder, empirical = parts
    chosen = {name: tasks[name] for name in ("retrieval", "reranking", "unlabelled")}
    found = fisher(encoder, chosen, dims=[6, 2], estimator=estimator, **FEW)
    assert found.meta["dims"] == [6, 2]
    assert not torch.allclose(found.fisher["dense.linear.weight"], empirical.fisher["dense.linear.weight"])
    again = fisher(encoder, chosen, dims=[6, 2], estimator=estimator, batch_tokens=30, **FEW)
    assert_same(again, found)


def test_what_cannot_work_is_said_before_anything_is_computed(parts):
    tasks, encoder, _ = parts
    with pytest.raises(InputError, match="estimator=true"):
        fisher(encoder, tasks, estimator="true")
    with pytest.raises(InputError, match="weight above 0"):
        fisher(encoder, {"sts": Task(tasks["sts"].data, weight=0)})
    with pytest.raises(InputError, match="full size"):
        fisher(encoder, tasks, dims=[2])


def test_an_interrupted_estimate_goes_on(parts, tmp_path, monkeypatch):
    tasks, encoder, expected = parts
    real, count = SampleGradients.add, []
    monkeypatch.setattr("acge_lightning.continual.fisher._SAVE_EVERY", 0.0)

    def add(self, columns, losses):
        if len(count) == 9:
            raise KeyboardInterrupt
        count.append(len(columns[0]))
        real(self, columns, losses)

    monkeypatch.setattr(SampleGradients, "add", add)
    with pytest.raises(KeyboardInterrupt):
        fisher(encoder, tasks, batch_tokens=60, state=tmp_path / "state", **FEW)
    first, kept = sum(count), sorted(file.name for file in (tmp_path / "state").iterdir())
    assert kept[-1] == "sts.0.safetensors"
    monkeypatch.setattr(SampleGradients, "add", real)
    seen = []
    monkeypatch.setattr(
        SampleGradients, "add", lambda s, columns, losses: (seen.append(len(columns[0])), real(s, columns, losses))
    )
    os.rename(tmp_path / "state", tmp_path / "old.parts")
    file, found = write_anchor(tmp_path / "old.safetensors", encoder, tasks, batch_tokens=60, **FEW)
    assert_same(found, expected)
    assert_same(Anchor.load(file), expected)
    assert sum(seen) + first == 10 * len(tasks)
    assert list(tmp_path.iterdir()) == [file]


def test_kept_sums_of_other_settings_are_not_used(parts, tmp_path, caplog):
    tasks, encoder, _ = parts
    chosen = {"sts": tasks["sts"]}
    fisher(encoder, chosen, seed=1, state=tmp_path / "state", **FEW)
    (tmp_path / "state" / "retrieval.0.safetensors").write_bytes(b"cut off")
    found = fisher(encoder, chosen, state=tmp_path / "state", **FEW)
    assert_same(found, fisher(encoder, chosen, **FEW))
    assert "of other settings" in caplog.text


BAD_SUMS = {
    "negative": lambda sums, meta: sums["dense.linear.bias"].fill_(-1),
    "infinite": lambda sums, meta: sums["dense.linear.bias"].fill_(torch.inf),
    "nan": lambda sums, meta: sums["dense.linear.bias"].fill_(torch.nan),
    "other weights": lambda sums, meta: sums.update(other=torch.ones(2)),
    "other shape": lambda sums, meta: sums.update({"dense.linear.bias": torch.ones(2)}),
    "too many": lambda sums, meta: meta.update(done="99"),
    "no number": lambda sums, meta: meta.update(done="x"),
    "none": lambda sums, meta: meta.pop("done"),
}


@pytest.mark.parametrize("bad", BAD_SUMS)
def test_kept_sums_that_cannot_be_are_begun_anew(parts, tmp_path, caplog, bad):
    """Though they say that they are of these settings."""
    tasks, encoder, _ = parts
    chosen, file = {"sts": tasks["sts"]}, tmp_path / "state" / "sts.0.safetensors"
    expected = fisher(encoder, chosen, state=tmp_path / "state", **FEW)
    with safe_open(file, "pt") as opened:
        sums, meta = load_file(file), opened.metadata()
    BAD_SUMS[bad](sums, meta)
    save_file(sums, file, meta)
    assert_same(fisher(encoder, chosen, state=tmp_path / "state", **FEW), expected)
    assert "begun anew" in caplog.text


def test_one_process_at_a_time_makes_an_anchor(parts, tmp_path):
    tasks, encoder, _ = parts
    with (
        lock(tmp_path / "old.parts" / ".lock"),
        pytest.raises(InputError, match=rf"old\.parts is in use by process {os.getpid()} on .*another output"),
    ):
        write_anchor(tmp_path / "old.safetensors", encoder, {"sts": tasks["sts"]}, **FEW)
    assert not (tmp_path / "old.safetensors").exists()


def test_an_anchor_that_cannot_be_written_costs_nothing_but_its_writing(parts, tmp_path, monkeypatch):
    tasks, encoder, _ = parts
    (tmp_path / "old.safetensors").mkdir()  # something else is there
    with pytest.raises(InputError, match=r"old\.safetensors is a folder"):
        write_anchor(tmp_path / "old.safetensors", encoder, {"sts": tasks["sts"]}, **FEW)
    (tmp_path / "old.safetensors").rmdir()
    (tmp_path / "old.parts" / "mine.txt").write_text("not the program's")
    monkeypatch.setattr(SampleGradients, "add", lambda *args: pytest.fail("computed again"))
    write_anchor(tmp_path / "old.safetensors", encoder, {"sts": tasks["sts"]}, **FEW)
    assert [path.name for path in (tmp_path / "old.parts").iterdir()] == ["mine.txt"]


def test_a_file_that_is_no_anchor_is_kept(parts, tmp_path):
    tasks, encoder, _ = parts
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2)}, file)
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"model\.safetensors is there and is not an anchor: it is kept"):
        write_anchor(file, encoder, {"sts": tasks["sts"]}, **FEW)
    assert file.read_bytes() == before


def process(rank, world, port, cache, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    tasks, encoder = made(cache)
    found = fisher(encoder, tasks, state=f"{out}.parts", **FEW)
    if rank == 0:
        found.save(out)
    dist.destroy_process_group()


def test_two_processes_give_the_same(parts, tmp_path, cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(process, (2, port, str(cache), str(tmp_path / "two.safetensors")), nprocs=2)
    assert_same(Anchor.load(tmp_path / "two.safetensors"), parts[2])

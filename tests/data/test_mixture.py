"""Several tasks in one run: loaders, slices of ranks, resuming, leaks, and the module that trains on them."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from scipy.stats import spearmanr

from acge_lightning.data import (
    ClassificationDataModule,
    ClusteringDataModule,
    MixtureDataModule,
    PairDataModule,
    RerankingDataModule,
    RetrievalDataModule,
    STSDataModule,
    STSDataset,
    UnlabelledDataModule,
)
from acge_lightning.data import loaders as module
from acge_lightning.data.collate import Collate
from acge_lightning.data.loaders import EvaluationTexts, StepDataset, StepSampler
from acge_lightning.data.task import Task
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.losses.contrastive import CoSENT, InfoNCE, LabelContrast, SimCSE
from acge_lightning.losses.matryoshka import Matryoshka
from acge_lightning.metrics.task_metrics import Spearman
from acge_lightning.training.embedding_module import EmbeddingModule

FAMILIES = {
    "sts": STSDataModule,
    "pair": PairDataModule,
    "clustering": ClusteringDataModule,
    "classification": ClassificationDataModule,
    "retrieval": RetrievalDataModule,
    "reranking": RerankingDataModule,
    "unlabelled": UnlabelledDataModule,
}
LOSSES = {"sts": CoSENT, "pair": CoSENT, "clustering": LabelContrast, "classification": LabelContrast, "unlabelled": SimCSE}
MAIN = {
    "sts": "spearman",
    "pair": "ap",
    "clustering": "v_measure",
    "classification": "accuracy",
    "retrieval": "ndcg",
    "reranking": "map",
}
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 问答：，。"


def row_for(family, i):
    if family in ("sts", "pair"):
        return {"text1": f"a{i}", "text2": f"b{i}", "label": i % 2}
    if family in ("retrieval", "reranking"):
        return {"query": f"q{i}", "positive": [f"p{i}", f"r{i}"], "negative": [f"n{i}", f"m{i}"]}
    return {"text": f"t{i}", "label": i % 3} if family != "unlabelled" else {"text": f"text {i}"}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def make(tmp_path):
    """A data module of a family, with rows of the given numbers a split."""

    def made(family, name=None, train=range(20), dev=range(100, 112), test=None, rows=row_for, **options):
        folder = tmp_path / (name or family)
        for role, numbers in (("train", train), ("dev", dev), ("test", test)):
            if numbers is not None:
                write(folder / f"{role}.jsonl", [rows(family, i) for i in numbers])
        options = {"batch_size": 6, "holdout": 0.0, **options}
        return FAMILIES[family](folder, cache_dir=tmp_path / "cache", **options)

    return made


@pytest.fixture(scope="module")
def tokenizer():
    return train_vocabulary([CHARACTERS, *CHARACTERS] * 2, vocab_size=120)


@pytest.fixture
def encoder(tokenizer):
    torch.manual_seed(0)
    return static(tokenizer, dim=16, prompts={"q": "问：", "d": "答："})


def attached(data, encoder, step=0, rank=0, world=1, accumulate=1):
    """The data as if a trainer had taken it."""
    data.trainer = SimpleNamespace(global_step=step, global_rank=rank, world_size=world, accumulate_grad_batches=accumulate)
    data.bind(encoder)
    return data


def quick(**options):
    defaults = {
        "accelerator": "cpu",
        "max_steps": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**(defaults | options))


def same(first, second):
    """Whether two batches hold the same."""
    tensors = [(c.ids, c.lengths, *([] if b.labels is None else [b.labels])) for b in (first, second) for c in b.columns]
    half = len(tensors) // 2
    equal = all(
        torch.equal(x, y) for a, b in zip(tensors[:half], tensors[half:], strict=True) for x, y in zip(a, b, strict=True)
    )
    ids = all(torch.equal(x, y) for x, y in zip(first.ids, second.ids, strict=True))
    return first.task == second.task and equal and ids


def words(encoder, tokens):
    found = encoder.tokenize.tokenizer.convert_ids_to_tokens(tokens.ids.tolist())
    ends = tokens.lengths.cumsum(0).tolist()
    return ["".join(found[end - n : end]).replace("##", "") for end, n in zip(ends, tokens.lengths.tolist(), strict=True)]


# ---- training batches


def test_the_loader_gives_the_batches_of_the_sampler(make, encoder):
    tasks = {family: make(family) for family in FAMILIES}
    data = attached(MixtureDataModule(tasks, temperature=2.0, seed=3), encoder)
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) == len(data.sampler)
    assert {batch.task for batch in batches} == set(FAMILIES)
    for step, batch in enumerate(batches):
        drawn = data.sampler[step]
        found = tasks[batch.task].examples(drawn.positions, drawn.draws)
        assert batch.task == drawn.task
        assert [words(encoder, c) for c in batch.columns] == [
            [text.replace(" ", "") for text in column] for column in found.columns
        ]
        assert [ids.tolist() for ids in batch.ids] == [ids.tolist() for ids in found.ids]
        assert (batch.labels is None) == (found.labels is None)
        assert batch.labels is None or torch.equal(batch.labels, found.labels)


def test_the_second_round_goes_on_where_the_first_ended(make, encoder):
    tasks = {"sts": make("sts"), "pair": make("pair", train=range(30))}
    data = attached(MixtureDataModule(tasks), encoder)
    loader = data.train_dataloader()
    first = list(loader)
    data.trainer.global_step = len(first)
    second = list(loader)
    steps = StepDataset(data.sampler, data.collates, 0, 1)
    assert all(same(batch, steps[i]) for i, batch in enumerate(first + second))
    assert not all(same(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(make, encoder, workers):
    options = {"temperature": 2.0, "seed": 1}
    tasks = {family: make(family) for family in ("sts", "retrieval", "clustering", "unlabelled")}
    here = list(attached(MixtureDataModule(tasks, **options), encoder).train_dataloader())
    there = list(attached(MixtureDataModule(tasks, num_workers=workers, **options), encoder).train_dataloader())
    assert len(here) == len(there)
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_take_disjoint_slices_of_the_same_batch(make, encoder, world):
    tasks = {family: make(family, batch_size=7) for family in ("sts", "retrieval", "classification")}
    data = attached(MixtureDataModule(tasks), encoder)
    data.setup()
    alone = StepDataset(data.sampler, data.collates, 0, 1)
    ranks = [StepDataset(data.sampler, data.collates, rank, world) for rank in range(world)]
    for step in range(len(data.sampler)):
        whole, parts = alone[step], [rank[step] for rank in ranks]
        assert {part.task for part in parts} == {whole.task}
        assert {len(part) for part in parts} == {7 // world}  # the same number, or collectives would hang
        for column in range(2 if whole.task != "classification" else 1):
            found = [i for part in parts for i in part.ids[column].tolist()]
            assert len(set(found)) == len(found) == 7 // world * world
            assert sorted(found) == sorted(whole.ids[column].tolist()[: len(found)])
        if whole.task == "sts":
            labels = dict(zip(whole.ids[0].tolist(), whole.labels.tolist(), strict=True))
            for part in parts:
                assert part.labels.tolist() == [labels[i] for i in part.ids[0].tolist()]


def test_ranks_draw_the_same_positives_as_one_process(make, encoder):
    data = attached(MixtureDataModule({"retrieval": make("retrieval")}), encoder)
    data.setup()
    whole = StepDataset(data.sampler, data.collates, 0, 1)[0]
    pairs = dict(zip(*(ids.tolist() for ids in whole.ids[:2]), strict=True))
    for rank in range(2):
        part = StepDataset(data.sampler, data.collates, rank, 2)[0]
        assert dict(zip(*(ids.tolist() for ids in part.ids[:2]), strict=True)).items() <= pairs.items()


# ---- where a round begins


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("length", [1, 4, 5, 6])
def test_a_trainer_that_stops_after_any_step_goes_on_with_the_next_batch(length, accumulate):
    """Against a loop that does what Lightning's does: step after every k-th batch, and after the last one of an epoch."""
    sampler, trainer = range(length), SimpleNamespace(global_step=0, accumulate_grad_batches=accumulate)
    run, starts = [], {0: 0}
    for epoch in range(3):
        batches = list(StepSampler(sampler, trainer))
        assert batches == list(range(epoch * length, (epoch + 1) * length))
        for number, batch in enumerate(batches, 1):
            run.append(batch)
            if number % accumulate == 0 or number == length:
                trainer.global_step += 1
                starts[trainer.global_step] = len(run)
    assert run == list(range(3 * length))
    for step, drawn in starts.items():
        again = list(StepSampler(sampler, SimpleNamespace(global_step=step, accumulate_grad_batches=accumulate)))
        assert again == list(range(drawn, (drawn // length + 1) * length))


class Seen(Callback):
    """The steps whose batches a trainer was given; saves a checkpoint after one optimizer step."""

    def __init__(self, save_at=None, path=None):
        self.steps, self.save_at, self.path = [], save_at, path

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps.append(batch.ids[0].tolist())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.save_at and self.path and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:Total length of")  # nothing is validated
@pytest.mark.parametrize(("accumulate", "save_at", "workers"), [(1, 7, 0), (2, 4, 0), (3, 3, 0), (2, 4, 2)])
def test_a_resumed_run_sees_the_batches_that_the_whole_run_saw(
    make, encoder, tmp_path, tokenizer, accumulate, save_at, workers
):
    def fit(callback, **options):
        tasks = {"sts": make("sts", train=range(30), dev=None)}  # rounds of five batches
        model = EmbeddingModule(static(tokenizer, dim=8), {name: Task(data) for name, data in tasks.items()})
        trainer = quick(max_steps=-1, max_epochs=3, accumulate_grad_batches=accumulate, callbacks=[callback])
        trainer.fit(model, datamodule=MixtureDataModule(tasks, num_workers=workers), **options)
        return trainer

    whole = Seen(save_at, tmp_path / "at.ckpt")
    trainer = fit(whole)
    data = MixtureDataModule({"sts": make("sts", train=range(30), dev=None)})
    data.setup()
    steps = StepDataset(data.sampler, attached(data, encoder).collates, 0, 1)
    assert whole.steps == [steps[i].ids[0].tolist() for i in range(15)]
    a_round = -(-5 // accumulate)
    assert trainer.global_step == 3 * a_round
    resumed = Seen()
    fit(resumed, ckpt_path=tmp_path / "at.ckpt", weights_only=True)
    drawn = save_at // a_round * 5 + save_at % a_round * accumulate
    assert resumed.steps == whole.steps[drawn:]


# ---- evaluation batches


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4, 7, 512])
def test_evaluation_covers_every_text_and_judgement_once(make, encoder, monkeypatch, world, size):
    monkeypatch.setattr(module, "_EVALUATION_TEXTS", size)
    tasks = {
        "sts": make("sts"),
        "one": make("sts", "one", dev=range(7)),
        "class": make("classification", dev=range(200, 211), shots=2),
        "search": make("retrieval", dev=range(300, 306), prompts={"query": "q", "document": "d"}),
        "none": make("pair", "none", dev=None),
    }
    data = MixtureDataModule(tasks)
    loaders = [attached(data, encoder, rank=rank, world=world).val_dataloader() for rank in range(world)]
    assert data.evaluated("dev") == ["sts", "one", "class", "search"]
    for place, name in enumerate(data.evaluated("dev")):
        expected = data.evaluation(name, "dev")
        batches = [batch for rank in loaders for batch in rank[place]]
        assert {batch.task for batch in batches} == {name}
        assert all(0 < len(batch) <= size for batch in batches)
        numbers = torch.cat([batch.rows for batch in batches])
        assert numbers.tolist() == list(range(len(expected)))
        assert torch.equal(torch.cat([batch.labels for batch in batches]), expected.labels)
        shown = [text for batch in batches for text in words(encoder, batch.tokens)]
        prompts = [{"query": "问：", "document": "答："}[role] if name == "search" else "" for role in roles(expected)]
        assert shown == [prompt + text for prompt, text in zip(prompts, expected.texts.to_pylist(), strict=True)]
        assert len({len(rank[place]) > 0 for rank in loaders}) == 1


def roles(found):
    start = 0
    for end, role in found.roles:
        yield from [role] * (end - start)
        start = end


@pytest.mark.parametrize(("texts", "world"), [(2, 3), (2, 5), (3, 2), (3, 4), (1, 3)])
def test_more_ranks_than_texts_still_get_the_judgements_once(make, encoder, texts, world):
    data = make("sts", dev=range(texts // 2)) if texts % 2 == 0 else make("clustering", dev=range(texts))
    found = data.evaluation("dev")
    ranks = [EvaluationTexts(found, Collate("a", data, encoder), rank, world) for rank in range(world)]
    batches = [rank[i] for rank in ranks for i in range(len(rank))]
    assert all(len(rank) > 0 for rank in ranks)  # or Lightning would not validate there, and the others would wait
    assert sorted({i for batch in batches for i in batch.rows.tolist()}) == list(range(texts))
    if found.labels.shape[1] == 2:
        assert all(torch.equal(batch.labels, found.labels[batch.rows]) for batch in batches)
    else:
        assert torch.equal(torch.cat([batch.labels for batch in batches]), found.labels)


def test_test_loaders_hold_the_test_splits(make, encoder):
    data = attached(MixtureDataModule({"a": make("sts", "a", test=range(5)), "b": make("sts", "b")}), encoder)
    assert data.evaluated("test") == ["a"]
    ((batch,),) = [list(loader) for loader in data.test_dataloader()]
    assert words(encoder, batch.tokens) == [f"{letter}{i}" for i in range(5) for letter in "ab"]


def test_an_evaluation_set_is_made_once(make, encoder):
    data = MixtureDataModule({"a": make("sts")})
    assert data.evaluation("a", "dev") is data.evaluation("a", "dev")
    assert data.evaluation("a", "test") is None


# ---- leaks


def test_leaks_are_counted_over_all_tasks(make, caplog):
    def swapped(family, i):
        return {"text1": f"B{i}", "text2": f"A{i}", "label": 1}

    tasks = {
        "clean": make("sts", "clean"),
        "own": make("clustering", "own", train=range(20), dev=range(15, 30)),  # 15 … 19
        "other": make(
            "classification", "other", train=range(40, 60), dev=range(0, 50, 5), test=[41, 70]
        ),  # 0, 5, 10, 15, 40, 45
        "order": make(
            "pair",
            "order",
            train=range(500, 520),
            dev=range(10, 25),
            rows=lambda f, i: swapped(f, i) if i < 100 else row_for(f, i),
        ),
        "idle": make("sts", "idle", train=range(100, 112), dev=[600]),  # would spoil `clean` if it trained
    }
    data = MixtureDataModule(tasks, {"idle": 0})
    with caplog.at_level(logging.WARNING, logger="acge_lightning"):
        data.setup()
    expected = [("own", "dev", 5, 15), ("other", "dev", 6, 10), ("other", "test", 1, 2), ("order", "dev", 10, 15)]
    assert list(data.leaked()) == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"{name}: {found} of the {total} {role} rows are also training rows" for name, role, found, total in expected
    ]


def test_leaks_are_found_by_folded_text(make):
    data = make(
        "retrieval", train=["x Y"], dev=["Ｘ  y", "z"], rows=lambda family, i: {"query": i, "positive": "p"}, batch_size=2
    )
    (leak,) = MixtureDataModule({"a": data}).leaked()
    assert leak == ("a", "dev", 1, 2)


# ---- weights


def test_looking_for_leaks_builds_no_evaluation_set(make, encoder, monkeypatch):
    data = make("retrieval", test=range(3))
    monkeypatch.setattr(data, "_evaluation", None)  # calling it would fail
    mixture = MixtureDataModule({"a": data})
    mixture.setup()
    assert list(mixture.leaked()) == [("a", "test", 3, 3)]
    assert mixture.evaluated("test") == ["a"]


# ---- coverage


@pytest.mark.parametrize(("world", "used", "whole"), [(1, 500, True), (4, 500, True), (3, 483, False), (8, 432, False)])
def test_coverage_counts_what_all_devices_take(make, encoder, caplog, world, used, whole):
    data = attached(MixtureDataModule({"a": make("sts", train=range(500), batch_size=28)}), encoder, world=world)
    with caplog.at_level(logging.WARNING):
        data.train_dataloader()
    coverage = data.coverage()["a"]
    seen = [len(StepDataset(data.sampler, data.collates, rank, world)[step]) for step in range(18) for rank in range(world)]
    assert (coverage.rows, coverage.used, coverage.batches) == (500, sum(seen), 18)
    assert coverage.used == used
    assert coverage.whole == whole == ("of 500 rows" not in caplog.text)


def test_coverage_says_how_many_epochs_were_trained(make, encoder):
    tasks = {"a": make("sts", "a", train=range(24)), "b": make("sts", "b", train=range(48))}
    data = attached(MixtureDataModule(tasks, temperature=float("inf")), encoder, step=18)  # rounds of 6 and 6
    assert {name: task.epochs for name, task in data.coverage().items()} == pytest.approx({"a": 9 / 4, "b": 9 / 8}, abs=0.8)
    assert sum(task.epochs * task.batches for task in data.coverage().values()) == 18


def test_a_task_of_weight_0_is_evaluated_only(make, encoder):
    tasks = {"a": make("sts", "a"), "b": make("clustering", "b", train=None)}  # b has nothing to train on
    data = attached(MixtureDataModule(tasks, {"b": 0}), encoder)
    assert {batch.task for batch in data.train_dataloader()} == {"a"}
    assert [next(iter(loader)).task for loader in data.val_dataloader()] == ["a", "b"]
    assert sorted(data.train_texts()) == sorted(f"{letter}{i}" for letter in "ab" for i in range(20))
    with pytest.raises(InputError, match=r"has no train split: name its file under splits\.train, or give the task weight 0"):
        MixtureDataModule(tasks).setup()


def test_weights_and_temperature_reach_the_sampler(make):
    tasks = {"a": make("sts", "a", train=range(48)), "b": make("sts", "b", train=range(100, 112))}  # 8 and 2 batches
    data = MixtureDataModule(tasks, {"b": 3.0}, temperature=float("inf"), seed=5)
    data.setup()
    assert data.sampler.counts == {"a": 2, "b": 8}
    assert data.sampler.seed == 5
    first = data.sampler
    data.setup()
    assert data.sampler is first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"c": 1}}, r"weights\.c names no task: choose from \['a'\]"),
        ({"weights": {"a": 0}}, "there is no task to train on: give one a weight above 0"),
        ({"temperature": 0.0}, r"mixture\.temperature=0\.0 must be above 0"),
    ],
)
def test_wrong_mixtures_are_refused(make, options, message):
    with pytest.raises(InputError, match=message):
        MixtureDataModule({"a": make("sts")}, **options).setup()


def test_data_without_a_model_says_what_it_needs(make):
    data = MixtureDataModule({"a": make("sts")})
    with pytest.raises(InputError, match=r"the data needs an encoder's tokenizer: call bind\(encoder\) before its loaders"):
        data.train_dataloader()


def test_loaders_and_rows_need_a_trainer(make, encoder):
    data = MixtureDataModule({"sts": make("sts")})
    data.bind(encoder)
    for use in (data.train_dataloader, data.val_dataloader, lambda: data.rows_of(0, 0)):
        with pytest.raises(InputError, match=r"no Trainer.*Trainer\.fit"):
            use()


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_a_task_alone_needs_an_encoder_too(make, loader):
    with pytest.raises(InputError, match=r"call bind\(encoder\)"):
        getattr(make("sts"), loader)()


def test_binding_refuses_a_prompt_that_the_encoder_does_not_have(make, encoder):
    data = MixtureDataModule({"a": make("sts", prompts={"text": "passage"})})
    with pytest.raises(InputError, match="task a: prompt 'passage' is none of the encoder's"):
        data.bind(encoder)


def test_the_encoder_that_was_bound_last_makes_the_batches(make, encoder):
    data = attached(MixtureDataModule({"a": make("sts")}), encoder)
    other = static(train_vocabulary(["zzz"], vocab_size=30), dim=8)
    before = next(iter(data.train_dataloader())).columns[0]
    data.bind(other)
    after = next(iter(data.train_dataloader())).columns[0]
    position = data.sampler[0].positions
    texts = [row["text1"] for row in data.tasks["a"].train.take(position)]
    for tokens, tokenize in ((before, encoder.tokenize), (after, other.tokenize)):
        assert torch.equal(tokens.ids, tokenize(texts).ids)
    assert not torch.equal(before.ids, after.ids)


# ---- training


@pytest.mark.filterwarnings("ignore:Total length of")  # nothing is validated
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_alone(make, encoder, family):
    data = make(family, dev=None if family == "unlabelled" else range(100, 112), test=range(120, 130))
    model = EmbeddingModule(encoder, {family: Task(data)})
    before = encoder.backbone.embedding.weight.detach().clone()
    trainer = quick(val_check_interval=2)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 2
    assert not torch.equal(encoder.backbone.embedding.weight, before)
    found = trainer.callback_metrics
    assert torch.isfinite(found[f"train/{family}/loss"])
    assert isinstance(model.losses[family], LOSSES.get(family, InfoNCE))
    if family == "unlabelled":
        assert not [key for key in found if key.startswith("val/")]
    else:
        assert found["val/mean"] == found[f"val/{family}"] == found[f"val/{family}/{MAIN[family]}"]
        (scores,) = trainer.test(model, datamodule=data, verbose=False)
        assert scores["test/mean"] == scores[f"test/{family}/{MAIN[family]}"]


@pytest.mark.parametrize(("family", "in_batch"), [("retrieval", True), ("reranking", False)])
def test_reranking_contrasts_listed_candidates_only(make, encoder, family, in_batch):
    assert EmbeddingModule(encoder, {"a": Task(make(family))}).losses["a"].in_batch == in_batch


def test_a_mixture_trains_and_logs_every_score(make, encoder):
    tasks = {
        "one": make("sts", "one", rows=scored),
        "two": make("sts", "two", train=range(30, 50), dev=range(200, 212), rows=scored),
        "pairs": make("pair", "pairs", train=range(60, 90)),
        "plain": make("unlabelled", "plain", dev=None),
    }
    model = EmbeddingModule(encoder, {name: Task(data) for name, data in tasks.items()})
    data = MixtureDataModule(tasks)
    trainer = quick(max_steps=-1, max_epochs=1)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == len(data.sampler)
    found = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert {key for key in found if key.startswith("train/")} == {"train/loss", *(f"train/{name}/loss" for name in tasks)}
    assert {key for key in found if key.startswith("val/")} == {
        *("val/one/spearman", "val/two/spearman", "val/pairs/ap", "val/sts", "val/pair", "val/mean")
    }
    for name in ("one", "two"):  # by hand, from the trained encoder
        rows = [scored("sts", i) for i in (range(100, 112) if name == "one" else range(200, 212))]
        first, second = (encoder.encode([row[key] for row in rows]) for key in ("text1", "text2"))
        cosine = torch.cosine_similarity(first, second)
        expected = spearmanr(cosine.numpy(), [row["score"] for row in rows]).statistic
        assert found[f"val/{name}/spearman"] == pytest.approx(expected, abs=1e-6)
    assert found["val/sts"] == pytest.approx((found["val/one/spearman"] + found["val/two/spearman"]) / 2, abs=1e-6)
    assert found["val/pair"] == found["val/pairs/ap"]
    assert found["val/mean"] == pytest.approx((found["val/sts"] + found["val/pair"]) / 2, abs=1e-6)
    assert found["val/one/spearman"] != found["val/two/spearman"]


def scored(family, i):
    return {"text1": f"x{i * 7 % 31}", "text2": f"{i} y{i * 5 % 23}", "score": i * 11 % 17 / 4}


def test_validation_starts_from_empty_metrics(make, encoder):
    data = make("sts", rows=scored)
    model, trainer = EmbeddingModule(encoder, {"sts": Task(data)}), quick()
    first, second = (trainer.validate(model, datamodule=data, verbose=False) for _ in range(2))
    assert first == second
    model.metrics["sts"].update(torch.ones(2, 16), torch.tensor([0, 1]), torch.tensor([[0.0, 1.0, 9.0]]).double())
    assert trainer.validate(model, datamodule=data, verbose=False) == first


def test_no_split_to_score(make, encoder):
    data = make("sts")
    model = EmbeddingModule(encoder, {"sts": Task(data)})
    with pytest.raises(InputError, match="no task has a test split to score: add one that has labels"):
        model.on_test_epoch_end()


@pytest.mark.parametrize("weight", [0.25, 3.0, 0.0])
def test_loss_weight_scales_gradients_and_not_what_is_logged(make, encoder, weight, monkeypatch):
    data = attached(MixtureDataModule({"a": make("retrieval"), "b": make("sts")}), encoder)
    batch = next(batch for batch in data.train_dataloader() if batch.task == "a")

    def gradient(task):
        model, logged = EmbeddingModule(encoder, {"a": task, "b": Task(make("sts"), loss_weight=100.0)}), {}
        monkeypatch.setattr(model, "log", lambda key, value, **_: logged.update({key: value.item()}))
        encoder.zero_grad()
        model.training_step(batch).backward()
        return encoder.backbone.embedding.weight.grad.clone(), logged

    plain, logged = gradient(Task(make("retrieval")))
    scaled, logged_again = gradient(Task(make("retrieval"), loss_weight=weight))
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(scaled, weight * plain)
    assert set(logged) == {"train/a/loss", "train/loss"}
    assert logged == logged_again


def test_the_loss_is_that_of_the_columns(make, encoder, monkeypatch):
    data = attached(MixtureDataModule({"a": make("retrieval", negatives=2)}), encoder)
    batch = next(iter(data.train_dataloader()))
    model = EmbeddingModule(encoder, {"a": Task(make("retrieval"), InfoNCE(temperature=0.2))}, batch_tokens=7)
    monkeypatch.setattr(model, "log", lambda *args, **kwargs: None)
    columns = tuple(encoder.encode(words(encoder, column)) for column in batch.columns)
    assert len(columns) == 3
    expected = InfoNCE(temperature=0.2)(columns, batch.labels, batch.ids)
    assert model.training_step(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_matryoshka_wraps_every_loss(make, encoder):
    tasks = {"a": Task(make("sts")), "b": Task(make("retrieval"), InfoNCE(0.1))}
    model = EmbeddingModule(encoder, tasks, matryoshka={"dims": [4, 16, 8], "weights": [1.0, 2.0, 0.5]})
    assert all(isinstance(loss, Matryoshka) for loss in model.losses.values())
    assert model.losses["b"].loss is tasks["b"].loss
    assert model.losses["a"].weights == {4: 1.0, 16: 2.0, 8: 0.5}
    assert encoder.matryoshka_dims == (16, 8, 4)


@pytest.mark.parametrize("dims", [[32, 16], [8, 4], [16, 0], []])
def test_matryoshka_dims_must_fit_the_encoder(make, encoder, dims):
    with pytest.raises(InputError, match=r"matryoshka\.dims="):
        EmbeddingModule(encoder, {"a": Task(make("sts"))}, matryoshka={"dims": dims})


@pytest.mark.filterwarnings("ignore:Total length of")  # nothing is validated
def test_a_plain_dataset_trains_with_a_loss_of_its_own(make, encoder):
    data = make("sts", dev=None)
    plain = STSDataset(data.path, batch_size=6, cache_dir=data.cache_dir, holdout=0.0)
    with pytest.raises(InputError, match=r"task\.….loss is missing: STSDataset names none of its own"):
        EmbeddingModule(encoder, {"a": Task(plain)})
    module = EmbeddingModule(encoder, {"a": Task(plain, CoSENT())})
    before = encoder.backbone.embedding.weight.detach().clone()
    quick().fit(module, MixtureDataModule({"a": plain}))
    assert not torch.equal(encoder.backbone.embedding.weight, before)
    assert not module.metrics


def test_texts_without_labels_have_no_metric(make):
    with pytest.raises(InputError, match=r"task\.….metric: unlabelled texts have nothing to be scored by"):
        Task(make("unlabelled"), metric=Spearman())


@pytest.mark.parametrize("options", [{"weight": -1}, {"loss_weight": -0.1}, {"weight": float("nan")}])
def test_wrong_task_weights_are_refused(make, options):
    with pytest.raises(InputError, match="must be 0 or more"):
        Task(make("sts"), **options)


@pytest.mark.parametrize("name", ["a/b", "a.b", "", "a b"])
def test_task_names_fit_into_keys(make, encoder, name):
    with pytest.raises(InputError, match="not made of letters, digits, - and _"):
        EmbeddingModule(encoder, {name: Task(make("sts"))})

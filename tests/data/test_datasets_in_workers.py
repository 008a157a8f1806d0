"""Data sets in other processes, prompts by role, and the packaged sample."""

import pickle

import numpy as np
import pytest
import torch
from family_rows import FAMILIES, SAMPLE, beir, row_for, texts_of, uniform, write
from torch.utils.data import DataLoader

import acge_lightning.data
from acge_lightning.data.collate import Collate
from acge_lightning.data.loaders import StepDataset
from acge_lightning.data.sampler import TaskBatchSampler
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError


def folder_of(family, path):
    """Rows of a family, and the family that reads them."""
    if family == "beir":
        beir(path)
        return "retrieval"
    write(
        path / "train.jsonl",
        [row_for(family, i) | {"text": f"文 {i}", "text1": f"文 {i}", "query": f"问 {i}"} for i in range(300)],
    )
    return family


@pytest.mark.parametrize("family", [*FAMILIES, "beir"])
@pytest.mark.parametrize("kind", ["Dataset", "DataModule"])
def test_a_dataset_goes_to_another_process_without_its_rows(tmp_path, family, kind):
    name = FAMILIES[folder_of(family, tmp_path / "set")].__name__.replace("Dataset", kind)
    data = getattr(acge_lightning.data, name)(tmp_path / "set", cache_dir=tmp_path / "cache", holdout=0.2)
    if kind == "DataModule":
        data.trainer = lambda: None  # cannot be pickled
        data.bind(lambda: None)
    data.open()
    sent = pickle.dumps(data)
    again = pickle.loads(sent)
    positions, draws = np.arange(20), uniform(20)
    here, there = (module.examples(positions, draws) for module in (data, again))
    assert here.columns == there.columns
    for role in data.opened_splits:
        assert texts_of(data.evaluation(role)) == texts_of(again.evaluation(role))
    assert not any(letter.encode() in sent for letter in "文问")


@pytest.mark.heavy
def test_workers_that_are_started_anew_give_the_same_batches(tmp_path, make):
    tasks = {}
    for family in [*FAMILIES, "beir"]:
        tasks[family] = make(folder_of(family, tmp_path / family), tmp_path / family, holdout=0.0)
        tasks[family].open()
    encoder = static(train_vocabulary(["abc 0123456789 文题问"], vocab_size=60), dim=8)
    steps = StepDataset(TaskBatchSampler(tasks), {name: Collate(name, data, encoder) for name, data in tasks.items()}, 0, 1)
    order = list(range(len(steps.sampler)))
    loader = DataLoader(steps, batch_size=None, sampler=order, num_workers=1, multiprocessing_context="spawn")
    for step, batch in zip(order, loader, strict=True):
        expected = steps[step]
        assert batch.task == expected.task
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(batch.columns, expected.columns, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(batch.ids, expected.ids, strict=True))
    assert {steps[step].task for step in order} == set(tasks)


@pytest.fixture(scope="module")
def encoder():
    characters = "问答文语句词问题类别甲乙丙丁：0123456789abcdefghijklmnopqrstuvwxyz"
    return static(
        train_vocabulary([*characters, characters] * 3, vocab_size=200), dim=8, prompts={"q": "问：", "d": "答：", "t": "文："}
    )


def decoded(encoder, tokens):
    words = encoder.tokenize.tokenizer.convert_ids_to_tokens(tokens.ids.tolist())
    ends = tokens.lengths.cumsum(0).tolist()
    return ["".join(words[end - n : end]).replace("##", "") for end, n in zip(ends, tokens.lengths.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("family", "prompts", "expected"),
    [
        ("retrieval", {"query": "q", "document": "d"}, ["问：q1", "答：p1", "答：n1"]),
        ("reranking", {"document": "d"}, ["q1", "答：p1", "答：n1"]),
        ("sts", {"text": "t"}, ["文：a1", "文：b1"]),
        ("unlabelled", {"text": "t"}, ["文：t1", "文：t1"]),
        ("clustering", {"text": "q"}, ["问：t1"]),
        ("clustering", {}, ["t1"]),
    ],
)
def test_prompts_reach_the_tokens_by_role(tmp_path, make, encoder, family, prompts, expected):
    rows = [row_for(family, i) for i in range(4)]
    write(tmp_path / "train.jsonl", [{**row, "negative": [f"n{i}"]} if "query" in row else row for i, row in enumerate(rows)])
    data = make(family, prompts=prompts, holdout=0.0)
    batch = Collate("task", data, encoder).training(np.array([1, 3]), uniform(2))
    assert [decoded(encoder, column)[0] for column in batch.columns] == expected
    assert [len(ids) for ids in batch.ids] == [len(column) for column in batch.columns]


def test_a_prompt_that_the_encoder_lacks(tmp_path, make, encoder):
    with pytest.raises(InputError, match=r"task sts_zh: prompt 'x' is none of the encoder's: \['d', 'q', 't'\]"):
        Collate("sts_zh", make("sts", prompts={"text": "x"}), encoder)


# ---- real rows


@pytest.mark.parametrize("family", FAMILIES)
def test_the_packaged_sample_opens(tmp_path, make, family):
    data = make(family, SAMPLE / family / "sample_zh")
    found = data.examples(np.arange(5), uniform(5))
    assert len(found.columns[0]) == 5
    assert (data.evaluation("dev") is None) == (family == "unlabelled")

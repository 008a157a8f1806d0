"""Ragged tokens and batches of them."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acge_lightning.data import EvaluationBatch, TextBatch
from acge_lightning.encoder.tokens import Tokens

PAD = 999
ROWS = st.lists(st.lists(st.integers(0, 500), max_size=12), max_size=20)
quick = settings(max_examples=60, deadline=None)


def smallest_largest(sizes, parts):
    """The largest sum of neighbours, cut into at most so many parts in the best way: by dynamic programming."""
    best = [0] + [float("inf")] * len(sizes)  # of the first n sizes
    for _ in range(parts):
        best = [min([best[n], *(max(best[m], sum(sizes[m:n])) for m in range(n))]) for n in range(len(sizes) + 1)]
    return best[-1]


def as_lists(tokens):
    return [part.tolist() for part in tokens.ids.split(tokens.lengths.tolist())] if len(tokens) else []


@quick
@given(ROWS)
def test_rows_come_back_as_they_went_in(rows):
    tokens = Tokens.from_lists(rows)
    assert len(tokens) == len(rows)
    assert as_lists(tokens) == rows
    assert tokens.ids.dtype == tokens.lengths.dtype == torch.long


@quick
@given(ROWS, st.integers(1, 40))
def test_chunks_cover_every_row_once_longest_first_within_the_budget(rows, budget):
    tokens = Tokens.from_lists(rows)
    chunks = [chunk.tolist() for chunk in tokens.chunks(budget)]
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(rows)))
    lengths = [len(rows[i]) for chunk in chunks for i in chunk]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(chunk) == 1 or len(chunk) * max(len(rows[i]) for i in chunk) <= budget for chunk in chunks)


@quick
@given(ROWS, st.integers(1, 40))
def test_chunks_are_as_large_as_the_budget_allows(rows, budget):
    chunks = [chunk.tolist() for chunk in Tokens.from_lists(rows).chunks(budget)]
    for chunk in chunks[:-1]:
        assert (len(chunk) + 1) * max(1, *(len(rows[i]) for i in chunk)) > budget


@quick
@given(st.lists(st.lists(st.integers(0, 1), max_size=3), max_size=20))
def test_distinct_rows_are_the_lists_without_repetitions(rows):
    found, which = Tokens.from_lists(rows).distinct()
    assert as_lists(found) == [list(row) for row in dict.fromkeys(map(tuple, rows))]
    assert [as_lists(found)[i] for i in which] == rows
    assert which.dtype == torch.long


@quick
@given(ROWS, st.integers(1, 40))
def test_padded_rows_equal_the_lists(rows, budget):
    tokens = Tokens.from_lists(rows)
    for chunk in tokens.chunks(budget):
        input_ids, mask = tokens.padded(chunk, PAD)
        width = max(1, *(len(rows[i]) for i in chunk.tolist()))
        assert input_ids.tolist() == [rows[i] + [PAD] * (width - len(rows[i])) for i in chunk.tolist()]
        assert mask.tolist() == [[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in chunk.tolist()]
        assert input_ids.dtype == mask.dtype == torch.long


@quick
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_cat_keeps_all_rows_in_order(parts):
    assert as_lists(Tokens.cat([Tokens.from_lists(rows) for rows in parts])) == [row for rows in parts for row in rows]


def test_a_row_longer_than_the_budget_is_a_chunk_of_its_own():
    tokens = Tokens.from_lists([[1], [2] * 50, [3, 3], [4] * 30])
    assert [chunk.tolist() for chunk in tokens.chunks(8)] == [[1], [3], [2, 0]]


@quick
@given(st.lists(st.integers(1, 12), max_size=30), st.integers(1, 40), st.integers(2, 5))
def test_packed_chunks_for_several_cores_are_as_many_for_each_and_about_as_large(lengths, budget, cores):
    tokens = Tokens.from_lists([[7] * n for n in lengths])
    chunks = {n: [chunk.tolist() for chunk in tokens.chunks(budget, packed=True, cores=n)] for n in (1, cores)}
    sizes = {n: [sum(lengths[i] for i in chunk) for chunk in each] for n, each in chunks.items()}
    assert [i for chunk in chunks[cores] for i in chunk] == [i for chunk in chunks[1] for i in chunk]
    if len(chunks[1]) < cores:
        assert chunks[cores] == chunks[1]
        return
    room = -(-len(chunks[1]) // cores) * cores
    assert len(chunks[cores]) <= room
    assert max(sizes[cores]) == smallest_largest(sorted(lengths, reverse=True), room)


def test_rows_of_equal_length_keep_their_order():
    assert torch.cat(list(Tokens.from_lists([[1]] * 50).chunks(7))).tolist() == list(range(50))


@pytest.mark.parametrize("rows", [[[]], [[], []], [[], [5, 6], []]])
def test_empty_rows_are_all_padding(rows):
    input_ids, mask = Tokens.from_lists(rows).padded(torch.arange(len(rows)), PAD)
    width = max(1, *map(len, rows))
    assert input_ids.tolist() == [row + [PAD] * (width - len(row)) for row in rows]
    assert mask.sum(1).tolist() == [len(row) for row in rows]


def test_no_rows_give_no_chunks():
    tokens = Tokens.from_lists([])
    assert len(tokens) == 0
    assert list(tokens.chunks(10)) == []
    assert tokens.ids.dtype == tokens.lengths.dtype == torch.long


def example(labels):
    columns = (Tokens.from_lists([[1, 2], [3]]), Tokens.from_lists([[4], []]))
    return TextBatch("sts", columns, labels, (torch.tensor([7, 8]), torch.tensor([9, 10])))


@pytest.mark.parametrize("labels", [None, torch.tensor([3.2, 3.21], dtype=torch.double)])
def test_to_moves_what_the_model_needs_and_keeps_types(labels):
    batch = example(labels)
    moved = batch.to("meta")
    assert isinstance(moved, TextBatch)
    assert all(isinstance(c, Tokens) and c.ids.is_meta and not c.lengths.is_meta for c in moved.columns)
    assert all(i.is_meta for i in moved.ids)
    assert (moved.labels is None) if labels is None else (moved.labels.is_meta and moved.labels.dtype == torch.double)
    assert (moved.task, len(moved)) == ("sts", 2)
    assert not batch.columns[0].ids.is_meta


def test_a_batch_survives_pickling():
    batch = pickle.loads(pickle.dumps(example(torch.tensor([0.5, 1.0]))))
    assert [as_lists(c) for c in batch.columns] == [[[1, 2], [3]], [[4], []]]
    assert batch.labels.tolist() == [0.5, 1.0]


def test_an_evaluation_batch_moves_with_its_rows_and_labels():
    batch = EvaluationBatch("sts", Tokens.from_lists([[1, 2], [3]]), torch.tensor([4, 5]), torch.tensor([[0, 1], [1, 0]]))
    moved = batch.to("meta")
    assert moved.tokens.ids.is_meta
    assert moved.rows.is_meta
    assert moved.labels.is_meta
    assert (moved.task, len(moved)) == ("sts", 2)
    assert not batch.rows.is_meta
    assert EvaluationBatch("sts", batch.tokens, batch.rows, None).to("meta").labels is None

"""Texts in an index: searched for, shown, and left out where they have no direction."""

import numpy as np
import pytest

from acge_lightning import load
from acge_lightning.errors import InputError
from acge_lightning.search import FunnelIndex

EMPTY = "\u200b\u200d"  # of no width: no token of this encoder


def by_cosine(encoder, texts, query):
    """Those with a vector, the nearest first."""
    scores = {text: float(encoder.encode(query) @ encoder.encode(text).T) for text in texts if encoder.encode(text).any()}
    return sorted(scores, key=scores.get, reverse=True)


def test_texts_are_indexed_searched_for_and_shown(small_encoder, tmp_path):
    from acge_lightning import load

    encoder = load(small_encoder)
    encoder.prompts = {"ask": "怎么"}
    texts = ["怎么退货？", "今天天气很好", "how do I return this"]
    index = FunnelIndex.from_texts(texts, encoder, prompts={"query": "ask"}, ids=["a", "b", "c"])
    FunnelIndex.load(index.save(tmp_path), encoder).search("退货？")
    index = FunnelIndex.load(tmp_path, encoder)
    hits = index.search("退货？", 2)
    assert hits.ids[0][0] == "a"
    assert index.rows.texts_of(hits.rows[0])[0] == texts[0]
    expected = encoder.encode(["退货？"], prompt="ask") @ encoder.encode(texts).T
    np.testing.assert_allclose(hits.scores[0], expected.sort(descending=True).values[0, :2], atol=1e-6)
    encoder.matryoshka_dims = (8, 16)
    with pytest.raises(InputError, match="this one has 16, trained for"):
        FunnelIndex.load(tmp_path, encoder)


def test_notes_are_kept_with_rows(tmp_path):
    index = FunnelIndex.build(np.eye(2, 4), ids=["a", "b"], texts=["one", "two"])
    with pytest.raises(InputError, match="the index has no notes: leave them out of the new rows too"):
        index.add(np.eye(1, 4), ids=["c"], texts=["three"], notes=["x"])
    with pytest.raises(InputError, match="the index has no notes"):
        index.rows.column("note")
    index = FunnelIndex(4, index.stages)
    index.add(np.eye(2, 4), notes=["{}", "退货"])
    with pytest.raises(InputError, match="1 notes for 2 rows"):
        index.add(np.eye(2, 4), notes=["x"])
    index = FunnelIndex.load(index.save(tmp_path))
    assert index.rows.column("note", np.array([1, 0])) == ["退货", "{}"]
    assert index.rows.column("note") == ["{}", "退货"]


@pytest.mark.parametrize("ids", [None, ["a", "b", "c", "d"]])
def test_texts_without_direction_are_left_out_and_named(ids, cleaning_encoder, caplog):
    encoder = load(cleaning_encoder)
    texts = ["天气", EMPTY, "公园", ""]
    assert not encoder.encode([EMPTY, ""]).any()
    index = FunnelIndex.from_texts(texts, encoder, ids=ids)
    assert "2 of 4 texts have no direction and are left out: " + ("1, 3" if ids is None else "b, d") in caplog.text
    hits = index.search("公园", 4)
    assert [texts[(ids or range(4)).index(key)] for key in hits.ids[0]] == by_cosine(encoder, texts, "公园")
    assert index.rows.texts_of(hits.rows[0]) == ["公园", "天气"]
    with pytest.raises(InputError, match="query 1 is zero"):
        index.search(["天气", EMPTY])
    with pytest.raises(InputError, match="none of 2 texts has a direction"):
        index.add([EMPTY, ""], ids=["x", "y"])
    with pytest.raises(InputError, match=r"texts\[1\] has half a surrogate pair"):
        index.add(["天气", "\ud83d"], ids=["x", "y"])
    index.add(["退货", EMPTY], ids=["e", "f"] if ids else [4, 5])
    assert index.search("退货", 1).ids == [["e" if ids else 4]]
    assert len(index) == 3


def test_texts_without_direction_are_an_error_where_rows_have_no_ids(cleaning_encoder):
    index = FunnelIndex.from_texts(["天气", "公园"], load(cleaning_encoder))
    with pytest.raises(InputError, match="row 1 is zero"):
        index.add(["退货", EMPTY])
    assert len(index) == 2

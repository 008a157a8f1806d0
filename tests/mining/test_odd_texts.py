"""Mining among odd texts: all alike, very long, empty, broken."""

import numpy as np
import pytest
from judged import Matrix, judged_of, write_rows

from acge_lightning.errors import InputError
from acge_lightning.mining.negatives.mined_folder import mined_rows
from acge_lightning.mining.negatives.miner import mine
from acge_lightning.mining.negatives.near_texts import NearTexts
from acge_lightning.mining.negatives.neighbours import DenseNeighbours
from acge_lightning.mining.negatives.rules import Rules


def test_ten_thousand_equal_rows_are_one(tmp_path):
    rows = [{"query": "怎么退货", "positive": ["七天"], "negative": ["天气"]}] * 10_000 + [
        {"query": "发票", "positive": ["订单页"]}
    ]
    judged = judged_of(tmp_path, rows)
    assert (judged.queries, judged.texts) == (["怎么退货", "发票"], ["七天", "天气", "订单页"])
    mined = mine(judged, Matrix(np.ones((2, 3))), Rules(negatives=2, near=0.8))
    assert [row["negative"] for row in mined_rows(judged, mined)] == [["天气", "订单页"], ["七天", "天气"]]


def test_vectors_that_are_all_equal_are_taken_in_the_order_of_the_texts(tmp_path):
    judged = judged_of(tmp_path, [{"query": "a", "positive": ["b"]}], [f"text {i}" for i in range(500)])
    vectors = np.ones((501, 8), dtype=np.float32)
    mined = mine(judged, DenseNeighbours(vectors[:1], vectors), Rules(negatives=4, range_min=2))
    assert [judged.texts[t] for t in mined.texts[0]] == ["text 2", "text 3", "text 4", "text 5"]


def test_texts_of_a_megabyte(tmp_path):
    """Of which the beginnings are compared."""
    long = "退货流程说明" * 60_000
    rows = [{"query": "流程", "positive": [long + "一"]}, {"query": "退货", "positive": ["七天"]}]
    judged = judged_of(tmp_path, rows, [long + "二", "天气" * 180_000])
    mined = mine(judged, Matrix(np.ones((2, 4))), Rules(negatives=3, near=0.8))
    assert [[judged.texts[t][:2] for t in row if t >= 0] for row in mined.texts] == [["七天", "天气"], ["退货", "退货", "天气"]]
    assert NearTexts([long, long[:-1] + "x"], 0.8).pairs(np.array([0]), np.array([1])).tolist() == [True]


def test_one_row_has_no_negatives_and_is_kept(tmp_path):
    judged = judged_of(tmp_path, [{"query": "a", "positive": ["b"]}])
    mined = mine(judged, DenseNeighbours(np.ones((1, 2)), np.ones((1, 2))), Rules(near=0.8))
    assert list(mined_rows(judged, mined)) == [{"query": "a", "positive": ["b"], "negative": []}]
    assert list(mined_rows(judged, mined, least=1)) == []


def test_a_listed_negative_that_is_a_positive_elsewhere_is_left_out_and_counted(tmp_path):
    rows = [
        {"query": "怎么退货", "positive": ["七天"], "negative": ["联系客服。", "天气", "怎么退货！"]},
        {"query": "怎么退货?", "positive": ["联系客服"]},
    ]
    judged = judged_of(tmp_path, rows)
    assert judged.left_out["listed negatives that are known positives"] == 2
    mined = mine(judged, Matrix(np.ones((2, judged.candidate_count))), Rules(negatives=1, range_max=3))
    assert [row["negative"] for row in mined_rows(judged, mined)] == [["天气"], ["天气"]]


def test_empty_files_and_broken_texts_are_errors(tmp_path):
    with pytest.raises(InputError, match="the file has no rows"):
        judged_of(tmp_path, [])
    (tmp_path / "b").mkdir()
    write_rows(tmp_path / "b" / "rows.jsonl", [{"query": "a", "positive": ["b"]}])
    with pytest.raises(InputError, match=r"more_texts\[1\] has half a surrogate pair"):
        judged_of(tmp_path / "b", [{"query": "a", "positive": ["b"]}], ["fine", "half \ud800"])

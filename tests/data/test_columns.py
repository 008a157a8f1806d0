"""Columns as people name them: what is recognised and said, what is ambiguous, and what an error gives to paste."""

import csv
import json
import logging
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from acge_lightning.config.overrides import arguments
from acge_lightning.data.columns import folded, match_columns, typed
from acge_lightning.data.pair import PairDataset, STSDataset
from acge_lightning.data.records import (
    DocumentRecord,
    LabelledRecord,
    PairRecord,
    RowError,
    ScoredPairRecord,
    TextRecord,
    TripletRecord,
)
from acge_lightning.data.retrieval import RetrievalDataset
from acge_lightning.errors import InputError

SCORED = [
    ("text1 text2 score", "text1 text2 score"),
    ("编号 问题 答案 相似度", "问题 答案 相似度"),
    ("句子1 句子2 得分", "句子1 句子2 得分"),
    ("文本1 文本2 分数 备注", "文本1 文本2 分数"),
    ("sentence1 sentence2 score", "sentence1 sentence2 score"),
    ("split genre score sentence1 sentence2", "sentence1 sentence2 score"),
    ("Sentence_A SENTENCE-B Relatedness_Score", "Sentence_A SENTENCE-B Relatedness_Score"),
    ("Text1 text_2 ＳＣＯＲＥ", "Text1 text_2 ＳＣＯＲＥ"),
    ("q1 q2 similarity", "q1 q2 similarity"),
    ("标题 正文 相关度（人工）", "标题 正文 相关度（人工）"),
    ("question answer rating", "question answer rating"),
    ("id question1 question2 title score", "question1 question2 score"),  # a title alone is not the text of a pair
    ("text1 sentence1 sentence2 text2 score", "text1 text2 score"),  # exact names win
]
TRIPLETS = [
    ("query pos neg", "query pos neg"),
    ("query pos", "query pos"),
    ("anchor positive negative", "anchor positive negative"),
    ("anchor positive negative_2 negative_10 negative_1", "anchor positive negative_1,negative_2,negative_10"),
    ("query positive neg2 neg1", "query positive neg1,neg2"),
    ("问题 正例 负例1 负例2", "问题 正例 负例1,负例2"),
    ("查询 正例 负例", "查询 正例 负例"),
    ("问题 答案", "问题 答案"),
    ("Query Positive", "Query Positive"),
]
LABELLED = [
    ("文本 标签", "文本 标签"),
    ("内容 类别", "内容 类别"),
    ("label sentence", "sentence label"),
    ("text intent", "text intent"),
    ("title text category", "text category"),
    ("label text label_desc", "text label"),
]


@pytest.mark.parametrize(
    ("record", "header", "expected"),
    [
        *((ScoredPairRecord, *case) for case in SCORED),
        *((TripletRecord, *case) for case in TRIPLETS),
        *((LabelledRecord, *case) for case in LABELLED),
    ],
)
def test_names_that_are_recognised(record, header, expected):
    fields = [field for field in record.fields if (record, field) != (ScoredPairRecord, "label")]
    matched = match_columns(header.split(), record)
    assert matched == dict(zip(fields, (tuple(names.split(",")) for names in expected.split()), strict=False))


@pytest.mark.parametrize(
    ("record", "header", "expected"),
    [
        (PairRecord, "premise hypothesis gold_label", {"text1": "premise", "text2": "hypothesis", "label": "gold_label"}),
        (PairRecord, "句子一 句子二 是否相似", {"text1": "句子一", "text2": "句子二", "label": "是否相似"}),
        (ScoredPairRecord, "text1 text2 标签", {"text1": "text1", "text2": "text2", "label": "标签"}),
        (ScoredPairRecord, "text1 text2 标签 相似度", {"text1": "text1", "text2": "text2", "score": "相似度"}),
        (ScoredPairRecord, "text1 text2 label 相似度", {"text1": "text1", "text2": "text2", "label": "label"}),
        (PairRecord, "text1 text2 score", {"text1": "text1", "text2": "text2"}),  # a score is no label
        (LabelledRecord, "text score", {"text": "text"}),
        (TextRecord, "序号 内容", {"text": "内容"}),
        (DocumentRecord, "_id title text", {"_id": "_id", "text": "text", "title": "title"}),
        (DocumentRecord, "id Text", {"_id": "id", "text": "Text"}),
        (DocumentRecord, "问题 答案", {}),  # of a corpus no other names are guessed
    ],
)
def test_fields_of_the_record_decide(record, header, expected):
    assert match_columns(header.split(), record) == {field: (name,) for field, name in expected.items()}


@pytest.mark.parametrize(
    ("record", "header", "given", "named"),
    [
        (ScoredPairRecord, "问题 句子1 答案 句子2 相似度", {}, ["问题, 句子1", "text1", "问题"]),
        (ScoredPairRecord, "text1 text2 得分 分数", {}, ["得分, 分数", "score", "得分"]),
        (ScoredPairRecord, "Text1 TEXT1 text2 score", {}, ["Text1, TEXT1", "text1", "Text1"]),
        (LabelledRecord, "标题 内容 标签", {}, ["标题, 内容", "text", "标题"]),
        (TripletRecord, "query answer pos", {}, ["answer, pos", "positive", "answer"]),
    ],
)
def test_two_columns_for_one_field_are_an_error_that_names_both(record, header, given, named):
    with pytest.raises(RowError) as caught:
        match_columns(header.split(), record, given)
    names, field, column = named
    assert names in str(caught.value)
    assert caught.value.setting == ("columns", {field: column})
    chosen = match_columns(header.split(), record, {field: column})  # the remedy works
    assert chosen[field] == (column,)
    assert all(any(name in chosen for name in fields) for fields in record.required)


def test_what_is_given_wins_and_the_rest_is_recognised():
    header = ["标题", "内容", "text1", "相似度", "text2"]
    assert match_columns(header, ScoredPairRecord, {"text1": "标题"})["text1"] == ("标题",)
    assert match_columns(header, ScoredPairRecord, {"text1": " 标题 "})["text1"] == ("标题",)
    assert match_columns(header, ScoredPairRecord, {"text2": "标题"}) == {
        "text2": ("标题",),
        "text1": ("text1",),
        "score": ("相似度",),
    }
    columns = match_columns(["text1", "text2", "score", "y"], ScoredPairRecord, {"label": "y"})
    assert "score" not in columns  # which would count instead of the label that the user names


@pytest.mark.parametrize("name", ["text_1", " Text1", "TEXT-1", "ｔｅｘｔ１", "text1\ufeff", "Text 1（必填）", "text1 [str]"])
def test_names_that_fold_alike(name):
    assert folded(name) == "text1"


# ---- files


def write(path, header, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def made(tmp_path, kind, path, **options):
    data = kind(path, cache_dir=tmp_path / "cache", holdout=0.0, **options)
    data.key = "task.mine.data."
    return data


def test_a_file_with_chinese_columns_is_read_and_said_once(tmp_path, caplog):
    path = write(tmp_path / "公司数据 (1).csv", ["编号", "问题", "答案", "相似度"], [(1, "甲", "乙", 0.5), (2, "丙", "丁", 1)])
    for _ in range(2):  # the second time from the kept rows
        data = made(tmp_path, STSDataset, path)
        assert [(row["text1"], row["text2"], row["score"]) for row in data.train.all()] == [("甲", "乙", 0.5), ("丙", "丁", 1)]
    said = [record.getMessage() for record in caplog.records if "→" in record.getMessage()]
    assert said == ["公司数据 (1).csv: 问题 → text1, 答案 → text2, 相似度 → score (not read: 编号)"]


def test_plain_columns_are_not_talked_about(tmp_path, caplog):
    made(tmp_path, STSDataset, write(tmp_path / "a.csv", ["text1", "text2", "score", "id"], [("a", "b", 1)])).open()
    assert not caplog.records


def test_several_negatives_become_one_list(tmp_path):
    header = ["anchor", "positive", "negative_1", "negative_10", "negative_2"]
    path = write(tmp_path / "a.csv", header, [("q", "p", "n1", "n10", "n2"), ("r", "s", "", "", "m")])
    split = made(tmp_path, RetrievalDataset, path).train
    assert [(row["query"], row["positive"], row["negative"]) for row in split.read_queries.store.take([0, 1])] == [
        ("q", ["p"], ["n1", "n2", "n10"]),
        ("r", ["s"], ["m"]),
    ]


def test_a_field_that_may_be_absent_may_come_late(tmp_path):
    rows = [{"query": f"q{i}", "positive": "p"} | ({"negative": "n"} if i > 150 else {}) for i in range(160)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    store = made(tmp_path, RetrievalDataset, tmp_path / "a.jsonl").train.read_queries.store
    assert sum(row["negative"] == ["n"] for row in store.take(range(160))) == 9


def test_parquet_and_json_lines_have_such_names_too(tmp_path):
    rows = [{"句子1": f"a{i}", "句子2": f"b{i}", "x": None} | ({"相似度": i} if i else {"score": 7}) for i in range(3)]
    pq.write_table(pa.Table.from_pylist([{**row, "相似度": i} for i, row in enumerate(rows)]), tmp_path / "a.parquet")
    data = made(tmp_path, STSDataset, tmp_path / "a.parquet", columns={"score": "相似度"})
    assert data.train.column("score").tolist() == [0, 1, 2]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    data = made(tmp_path, STSDataset, tmp_path / "b.jsonl", columns={"score": "相似度"}, on_bad_row="skip", max_bad_fraction=1)
    assert data.train.column("text1").tolist() == ["a1", "a2"]  # one column for the whole file, not one for each row


@pytest.mark.parametrize(
    ("header", "row", "named", "columns"),
    [
        (["甲", "乙", "分"], ["a", "b", 1], "text1, text2 and score or label", {"text1": "甲", "text2": "乙", "score": "分"}),
        (["分", "甲", "乙"], [1, "a", "b"], "text1, text2 and score or label", {"text1": "甲", "text2": "乙", "score": "分"}),
        (["text1", "b, c", "score"], ["a", "b", 1], "text2", {"text2": "b, c"}),
        (["text1", "it's", "score"], ["a", "b", 1], "text2", {"text2": "it's"}),
        (["text1", "a:b", "得分"], ["a", "b", 1], "text2", {"text2": "a:b"}),
    ],
)
def test_columns_that_cannot_be_matched_are_an_error_whose_remedy_works_as_typed(tmp_path, header, row, named, columns):
    path = write(tmp_path / "怪.csv", header, [row])
    with pytest.raises(InputError) as caught:
        made(tmp_path, STSDataset, path).open()
    message = str(caught.value)
    assert message.startswith(f"{path} has no column for {named}; its columns are {', '.join(header)}. Say which is which: ")
    (word,) = shlex.split(message.rpartition("which: ")[2])
    key, _, _ = word.partition("=")
    assert key == "task.mine.data.columns"
    assert OverridesParser.create().parse_override(arguments([word])[0]).value() == columns
    assert made(tmp_path, STSDataset, path, columns=columns).train.column("score").tolist() == [1.0]


def test_a_remedy_repeats_what_is_given_already(tmp_path):
    path = write(tmp_path / "a.csv", ["甲", "乙", "score"], [("a", "b", 1)])
    with pytest.raises(InputError, match=r"columns='\{text1: 甲, text2: 乙\}'$"):
        made(tmp_path, STSDataset, path, columns={"text1": "甲"}).open()


def test_too_few_columns(tmp_path):
    with pytest.raises(InputError, match=r"columns='\{text1: a, text2: …, score: …\}'$"):
        made(tmp_path, STSDataset, write(tmp_path / "a.csv", ["a"], [("x",)])).open()


def test_a_mapping_is_written_as_it_is_typed():
    assert shlex.split(typed({"a": 'x"y\\', "b": None, "c": 1})) == [r'{a: "x\"y\\", b: null, c: 1}']


# ---- labels


def pairs(tmp_path, labels, name="标签"):
    return write(tmp_path / "a.csv", ["text1", "text2", name], [(f"a{i}", f"b{i}", label) for i, label in enumerate(labels)])


@pytest.mark.parametrize(
    "words",
    [
        ("相似", "不相似"),
        ("是", "否"),
        ("相同", "不同"),
        ("匹配", "不匹配"),
        ("正确", "错误"),
        ("对", "错"),
        ("yes", "No"),
        ("TRUE", "false"),
        ("Y", "n"),
        ("1", "0"),
        ("１", "0.0"),
        ("Entailment", "contradiction"),
        ("蕴含", "矛盾"),
    ],
)
@pytest.mark.parametrize("kind", [PairDataset, STSDataset])
def test_words_that_are_labels(tmp_path, kind, words):
    data = made(tmp_path, kind, pairs(tmp_path, [words[0], f" {words[1]} ", words[0]]))
    assert data.train.column(data.label).tolist() == [1, 0, 1]


def test_neutral_in_chinese_is_left_out(tmp_path):
    assert made(tmp_path, PairDataset, pairs(tmp_path, ["蕴含", "中立", "矛盾"])).train.column("label").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("kind", "label", "reason", "remedy"),
    [
        (PairDataset, "2", "Where 0, 1, 2 are entailment, neutral, contradiction", "labels='{0: 1, 1: null, 2: 0}'"),
        (PairDataset, "很像", "Say what others mean", "labels='{很像: 1, …: 0}'"),
        (STSDataset, "2", "If it is a score", "columns='{score: 标签}'"),
        (STSDataset, "3.5", "If it is a score", "columns='{score: 标签}'"),
        (STSDataset, "很像", "Say what others mean", "labels='{很像: 1, …: 0}'"),
    ],
)
def test_other_labels_are_errors_that_give_what_to_type(tmp_path, kind, label, reason, remedy):
    with pytest.raises(InputError) as caught:
        made(tmp_path, kind, pairs(tmp_path, ["1", label])).open()
    assert f"line 3: field 'label' is '{label}': " in str(caught.value)
    assert str(caught.value).endswith(f"{reason}: task.mine.data.{remedy}")


def test_labels_of_ones_own(tmp_path, caplog):
    path = pairs(tmp_path, ["基本一致", "无关", "说不清", " 基本一致 ", "是"])
    labels = {"基本一致": 1, "无关": 0, "说不清": None, "是": 0}  # what is given counts before what is understood
    assert made(tmp_path, PairDataset, path, labels=labels).train.column("label").tolist() == [1, 0, 1, 0]
    assert "1 neutral rows left out" in caplog.text
    labels["是"] = 1  # kept rows are not those of other labels
    assert made(tmp_path, PairDataset, path, labels=labels).train.column("label").tolist() == [1, 0, 1, 1]


def test_numbers_of_nli(tmp_path):
    path = pairs(tmp_path, [0, 1, 2, 0], "label")
    labels = {0: 1, 1: None, 2: 0}
    assert made(tmp_path, PairDataset, path, labels=labels).train.column("label").tolist() == [1, 0, 1]
    assert made(tmp_path, STSDataset, path, labels=labels).train.column("score").tolist() == [1, 0, 1]


def test_words_may_be_scores(tmp_path):
    path = pairs(tmp_path, ["高", "中", "低", "无"], "相似度")
    data = made(tmp_path, STSDataset, path, labels={"高": 5, "中": 2.5, "低": 0, "无": None})
    assert data.train.column("score").tolist() == [5, 2.5, 0]


@pytest.mark.parametrize("value", ["yes", True, [1]])
def test_labels_are_numbers(value):
    with pytest.raises(InputError, match=r"labels\.相似=.* must be a number, such as 1 or 0, or null to leave it out"):
        PairDataset("a.csv", labels={"相似": value})


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("100%", "write it as 1, and all others so too"),
        ("85 %", "write it as 0.85, and all others so too"),
        ("5,0", "write it as 5, and all others so too"),
        ("0，75", "write it as 0.75, and all others so too"),
        ("4分", "write it as 4, and all others so too"),
        ("4.5分", "write it as 4.5, and all others so too"),
        ("1,000", "write one, such as 0.8, or on_bad_row=skip"),  # of which nobody knows what it is
        ("高", "write one, such as 0.8, or on_bad_row=skip"),
    ],
)
def test_scores_in_another_form_are_errors_that_say_the_remedy(tmp_path, value, remedy):
    with pytest.raises(InputError) as caught:
        made(tmp_path, STSDataset, pairs(tmp_path, ["0.5", value], "score")).open()
    assert str(caught.value).endswith(f"line 3: field 'score' is {value!r}, not a number: {remedy}")


def test_the_scale_of_scores_is_named(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for i, (scores, said) in enumerate([([0, 2.5, 5], "0 to 5"), ([-1, 0.25, 1], "-1 to 1"), ([0.1, 0.9], "0.1 to 0.9")]):
        (tmp_path / str(i)).mkdir()
        made(tmp_path, STSDataset, pairs(tmp_path / str(i), scores, "score")).open()
        assert f"{tmp_path / str(i) / 'a.csv'}: its scores are {said}: only their order counts" in caplog.text
    caplog.clear()
    made(tmp_path, STSDataset, pairs(tmp_path, [0, 1], "score")).open()
    assert not caplog.records

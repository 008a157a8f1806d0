"""`acge clean` from a folder of data sets to rows that train: what is planted is left out, and nothing else."""

import gzip
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from test_conf import composed

from acge_lightning.commands import clean
from acge_lightning.config.overrides import arguments, with_names
from acge_lightning.data import PairDataset
from acge_lightning.errors import InputError

CHARACTERS = np.array([chr(0x4E00 + i) for i in range(3000)])
RNG = np.random.default_rng(0)
QUESTIONS, ANSWERS = (["".join(RNG.choice(CHARACTERS, 18)) for _ in range(60)] for _ in range(2))
QUESTIONS[3] = "请问一下网上订的车票应该在哪里取"


def pair(one, other, label=1):
    return {"text1": one, "text2": other, "label": label}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def kept(file):
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def quarantine(folder, name):
    return [json.loads(line) for line in (folder / "quarantine" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def run(*words):
    clean.run(with_names(composed(arguments(words), "clean")))


@pytest.fixture
def folder(tmp_path):
    """Pairs and texts, with a copy, a variant, a near copy, a leak, a contradiction and a bad row planted among them."""
    rows = [pair(q, a, i % 2) for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]
    planted = [
        pair("請問一下，網上訂的車票，應該在哪裏取？", ANSWERS[3], 1),  # a variant of a row
        pair(ANSWERS[4], QUESTIONS[4], 0),  # a row in the other order
        pair("考试里才有的一个完整的问题，训练时不应该见到！", "它的答案也一样，训练时是不可以见到的"),  # in test
        pair(QUESTIONS[6], ANSWERS[6], 1),  # another label
        {"text1": "", "text2": "空的", "label": 1},
    ]
    write(tmp_path / "data/pair/faq/train.jsonl", [*rows, *planted])
    tested = pair("考试里才有的一个完整的问题，训练时不应该见到。", "它的答案也一样，训练时是不可以见到的")
    write(tmp_path / "data/pair/faq/test.jsonl", [tested, pair("另一个问题", "别的答案", 0)])
    texts = [{"text": q, "label": "甲乙丙"[i // 20]} for i, q in enumerate(QUESTIONS)]
    write(tmp_path / "data/classification/topic/train.jsonl", [*texts, {"text": QUESTIONS[0] + "。", "label": "别的"}])
    return tmp_path / "data"


def test_what_is_planted_is_left_out_and_nothing_else(folder, tmp_path, capsys):
    before = {file: file.read_bytes() for file in folder.rglob("*.jsonl")}
    run(f"source={folder}", f"out={tmp_path / 'out'}")
    rows = kept(tmp_path / "out/pair/faq/train.jsonl.gz")
    expected = [pair(q, a, i % 2) for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)) if i != 6]
    assert rows == expected
    reasons = {note["line"]: note["reason"] for note in quarantine(tmp_path / "out", "pair-faq")}
    assert {
        61: "exact duplicate",
        62: "exact duplicate",
        63: "leak, exact",
        7: "contradiction",
        64: "contradiction",
    }.items() <= reasons.items()
    assert "is empty" in reasons[65]
    leak = next(note for note in quarantine(tmp_path / "out", "pair-faq") if note["line"] == 63)
    assert leak["clashes_with"]["file"].endswith("test.jsonl")
    texts = kept(tmp_path / "out/classification/topic/train.jsonl.gz")
    assert [row["text"] for row in texts] == QUESTIONS[1:]
    assert {file: file.read_bytes() for file in before} == before
    shown = capsys.readouterr().out
    assert "contradictions" in shown
    assert "pair/faq" in shown
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "考试里才有的一个完整的问题" in page
    manifest = json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))
    counts = manifest["counts"]["pair/faq"]
    assert counts["read"] == 65 == counts["kept"] + counts["unreadable"] + sum(counts["left_out"].values())


def test_the_cleaned_folder_trains_and_is_clean(folder, tmp_path):
    write(folder / "sts/tested_only/test.jsonl", [{"text1": "甲", "text2": "乙", "score": 3.0}])
    run(f"source={folder}", f"out={tmp_path / 'out'}")
    copy = tmp_path / "out/sts/tested_only/test.jsonl"
    assert copy.read_bytes() == (folder / "sts/tested_only/test.jsonl").read_bytes()
    data = PairDataset(tmp_path / "out/pair/faq", holdout=0.0, cache_dir=tmp_path / "cache")
    assert len(data) == len(QUESTIONS) - 1
    assert len(data.evaluation("test")) == 4
    run(f"source={tmp_path / 'out'}", f"out={tmp_path / 'again'}")
    assert not (tmp_path / "again/quarantine").exists()
    for name in ("pair/faq", "classification/topic"):
        assert kept(tmp_path / f"again/{name}/train.jsonl.gz") == kept(tmp_path / f"out/{name}/train.jsonl.gz")


def test_a_file_of_ones_own_against_other_evaluation_sets(folder, tmp_path, caplog):
    leak = {
        "问题": "考试里才有的一个完整的问题，训练时不应该见到",
        "答案": "它的答案也一样训练时是不可以见到的",
        "标签": "相似",
        "部门": "甲",
    }
    rows = [{"问题": q, "答案": a, "标签": "相似", "部门": "乙"} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    write(tmp_path / "公司.jsonl", [leak, *rows])
    run(f"source={tmp_path / '公司.jsonl'}", "family=pair", f"evaluation={folder}", f"out={tmp_path / 'out'}")
    assert kept(tmp_path / "out/train.jsonl.gz")[0] == pair(QUESTIONS[0], ANSWERS[0], 1) | {"部门": "乙"}
    assert [note["reason"] for note in quarantine(tmp_path / "out", "公司.jsonl")] == ["leak, exact"]
    run(f"source={tmp_path / '公司.jsonl'}", "family=pair", f"out={tmp_path / 'alone'}")
    assert "leaks are not looked for" in caplog.text
    assert len(kept(tmp_path / "alone/train.jsonl.gz")) == len(rows) + 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps.leak={}"], "steps.leak is no step: choose from repair, texts, leaks"),
        (["steps.texts.languages=[xx]"], "languages has 'xx'"),
        (["tasks=[faqs]"], "tasks: 'faqs' is not under"),
        (["tasks=[pair]", "on_bad_row=raise"], "line 65: field 'text1' is empty"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(folder, tmp_path, words, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        run(f"source={folder}", f"out={tmp_path / 'out'}", *(word.replace("steps.leak=", "+steps.leak=") for word in words))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_kept(folder, tmp_path):
    write(tmp_path / "out/pair/train.jsonl", [pair("a", "b")])
    with pytest.raises(InputError, match=r"no acge\.json of ours: it is kept"):
        run(f"source={folder}", f"out={tmp_path / 'out'}")


def test_the_folder_that_is_read_is_not_replaced(folder, tmp_path):
    run(f"source={folder}", f"out={tmp_path / 'out'}")
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"holds .*train\.jsonl\.gz, which is read, and would be replaced"):
        run(f"source={tmp_path / 'out'}", f"out={tmp_path / 'out'}")
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before


def test_broken_letters_and_what_is_empty_once_repaired_are_told(tmp_path):
    rows = [{"query": f"第{i}个问题怎么办呢", "positive": [f"请看第{i}页"]} for i in range(3)]
    broken = [
        {"query": "坏\ud800字", "positive": ["a"]},
        {"query": "只有标签", "positive": ["<br>"]},
        {"query": "&nbsp;", "positive": ["b"]},
    ]
    path = tmp_path / "数据/客服(1).jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *broken]), encoding="utf-8")
    run(f"source={path}", "family=triplet", f"out={tmp_path / 'out'}")
    assert [row["query"] for row in kept(tmp_path / "out/train.jsonl.gz")] == [row["query"] for row in rows]
    reasons = {note["line"]: note["reason"] for note in quarantine(tmp_path / "out", "客服-1-.jsonl")}
    assert "is not valid UTF-8" in reasons[4]
    assert (reasons[5], reasons[6]) == ("empty", "empty")


def test_ten_thousand_equal_rows_leave_one(tmp_path):
    write(tmp_path / "same/sts/x/train.jsonl", [{"text1": "一样的问题", "text2": "一样的答案", "score": 3}] * 10_000)
    run(f"source={tmp_path / 'same'}", f"out={tmp_path / 'out'}")
    assert len(kept(tmp_path / "out/sts/x/train.jsonl.gz")) == 1


@pytest.mark.heavy
def test_a_killed_run_leaves_nothing_and_the_next_one_writes_the_same_bytes(folder, tmp_path):
    command = [sys.executable, "-m", "acge_lightning", "clean", str(folder)]
    subprocess.run([*command, f"out={tmp_path / 'whole'}"], check=True, capture_output=True)
    for moment in range(10):
        process = subprocess.Popen([*command, f"out={tmp_path / 'cut'}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.4 * moment)
        process.kill()
        process.wait()
        assert not (tmp_path / "cut").exists() or (tmp_path / "cut" / "manifest.json").is_file()
    subprocess.run([*command, f"out={tmp_path / 'cut'}"], check=True, capture_output=True)
    files = [
        {str(f.relative_to(tmp_path / name)): f.read_bytes() for f in sorted((tmp_path / name).rglob("*")) if f.is_file()}
        for name in ("whole", "cut")
    ]
    assert files[0] == files[1]
    assert [path.name for path in tmp_path.iterdir() if "cut" in path.name and path.name != ".cut.lock"] == ["cut"]


def test_near_copies_of_queries_are_left_out_only_where_the_query_is_the_same(tmp_path):
    manual = "在控制台的左侧导航栏中选择实例，然后点击右上角的按钮，在弹出的窗口中确认操作"
    rows = [
        {"query": "怎样删除一个正在运行的云服务器实例呢", "positive": [f"{manual}，删除。"]},
        {"query": "怎样查询一个正在运行的云服务器实例呢", "positive": [f"{manual}，查询。"]},
        {"query": "怎样删除一个正在运行的云服务器实例呢？", "positive": [f"{manual}，就删除。"]},
    ]
    write(tmp_path / "a.jsonl", rows)
    run(f"source={tmp_path / 'a.jsonl'}", "family=triplet", f"out={tmp_path / 'out'}")
    assert [row["positive"] for row in kept(tmp_path / "out/train.jsonl.gz")] == [row["positive"] for row in rows[:2]]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))
    [counts] = manifest["counts"].values()
    assert counts["left_out"] == {"near duplicate": 1}
    assert counts["reported"] == {"near duplicate, other query": 1}


def test_a_query_with_its_positive_is_a_pair_that_may_stand_in_a_test_split(tmp_path):
    tested = [pair("怎样修改已经绑定的手机号码呢", "已经绑定的手机号码应该怎样更换"), pair(QUESTIONS[0], ANSWERS[0])]
    write(tmp_path / "data/pair/tested/test.jsonl", tested)
    rows = [
        {
            "query": "已经绑定的手机号码，应该怎样更换？",
            "positive": [ANSWERS[1], "怎样修改已经绑定的手机号码呢"],
            "negative": [ANSWERS[2]],
        },
        {"query": QUESTIONS[0], "positive": [ANSWERS[3]], "negative": [ANSWERS[0]]},
        {"query": QUESTIONS[0], "positive": [ANSWERS[5]], "negative": []},
    ]
    write(tmp_path / "data/triplet/faq/train.jsonl", rows)
    run(f"source={tmp_path / 'data'}", f"out={tmp_path / 'out'}")
    assert [row["positive"] for row in kept(tmp_path / "out/triplet/faq/train.jsonl.gz")] == [[ANSWERS[5]]]
    notes = quarantine(tmp_path / "out", "triplet-faq")
    assert [(note["reason"], note["clashes_with"]["line"]) for note in notes] == [("leak, exact", 1), ("leak, exact", 2)]

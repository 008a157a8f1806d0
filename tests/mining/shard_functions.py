"""Functions that workers of an engine call in tests, and a dirty pile of data sets."""

import gzip
import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from acge_lightning.errors import InputError

CHARACTERS = np.array([chr(0x4E00 + i) for i in range(3000)])


def doubled(table, folder, by=2):
    """The numbers times `by`; a file in the folder for each call."""
    with Path(folder, f"calls-{os.getpid()}").open("a") as calls:
        calls.write(f"{table['n'][0]}\n")
    return pa.table({"n": [by * n for n in table["n"].to_pylist()]})


def calls(folder):
    return sorted(int(line) for file in Path(folder).glob("calls-*") for line in file.read_text().splitlines())


def failing(table, folder, at):
    """An error at one number, until a file is there."""
    if table["n"][0].as_py() == at and not Path(folder, "mended").exists():
        raise InputError(f"{at} is no number: take another")
    return doubled(table, folder)


def killed(table, folder, times):
    """Kills its own process at number 3, so many times in all."""
    marks = len(list(Path(folder).glob("killed-*")))
    if table["n"][0].as_py() == 3 and marks < times:
        Path(folder, f"killed-{marks}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return pa.table({"n": [2 * n for n in table["n"].to_pylist()]})


def text(rng, length=24):
    return "".join(rng.choice(CHARACTERS, length))


def write_dirty(folder, rows=120):
    """Data sets of several families, files and formats: copies across them, leaks, contradictions, bad rows, empty files."""
    rng = np.random.default_rng(1)
    texts = [text(rng, int(length)) for length in rng.integers(10, 60, 2 * rows)]
    edited = ["".join(text(rng, 1) if rng.random() < 0.06 else c for c in t) for t in texts[: rows // 4]]
    questions, answers = texts[:rows], texts[rows:]
    pairs = [{"text1": q, "text2": a, "label": i % 2} for i, (q, a) in enumerate(zip(questions, answers, strict=True))]
    for name in ("pair/faq/data", "sts/graded", "triplet/asked", "classification/topic", "unlabelled/pile"):
        (folder / name).mkdir(parents=True)
    faq = folder / "pair/faq"
    third = rows // 3
    _lines(
        faq / "train-1.jsonl",
        pairs[:third],
        ['{"text1": "坏', '{"text1": "", "text2": "空", "label": 1}', '{"text1": "\\ud800"}'],
    )
    with gzip.open(faq / "train-2.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(pair | {"来源": "\ud800甲"}) + "\n" for pair in [*pairs[third : 2 * third], *pairs[:5]])
    pq.write_table(pa.Table.from_pylist(pairs[2 * third :]), faq / "train-3.parquet", row_group_size=7)
    odd = f'sentence1,sentence2,label\n{edited[0]},{answers[0]},0\n"一行\n两行",好,中立\n'
    (faq / "train-4.csv").write_text(odd, encoding="utf-16")
    (faq / "train-5.jsonl").write_text("")
    _lines(faq / "test.jsonl", pairs[third : third + 9])
    graded = [{"text1": a, "text2": q, "score": float(i % 5)} for i, (a, q) in enumerate(zip(answers, questions, strict=True))]
    asked = [{"query": q, "positive": [a, "<br>" + a]} for q, a in zip(questions, answers, strict=True)]
    _lines(folder / "sts/graded/train.jsonl", [*graded, {**graded[0], "score": 4.0}, {**graded[1], "score": 0.0}])
    _lines(folder / "triplet/asked/train.jsonl", asked)
    _lines(folder / "triplet/asked/dev.jsonl", [{"query": questions[7] + "吗", "positive": [answers[7]]}])
    labelled = [{"text": f"&nbsp;{t}", "label": "甲乙丙"[i % 3]} for i, t in enumerate([*questions, *questions[:9]])]
    _lines(folder / "classification/topic/train.jsonl", labelled)
    _lines(folder / "classification/topic/test.jsonl", [{"text": f"{text(rng)}{questions[11]}{text(rng)}", "label": "甲"}])
    for number in range(8):
        part = texts[number::8] + edited[number::4]
        _lines(folder / f"unlabelled/pile/train-{number}.jsonl", [{"text": t} for t in part])
    _lines(folder / "unlabelled/pile/train-8.jsonl", [{"text": "只有一行"}])
    return folder


def _lines(file, rows, bad=()):
    lines = [*(json.dumps(row, ensure_ascii=False) for row in rows), *bad]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

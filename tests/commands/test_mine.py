"""`acge mine`: what it writes, what it says, that it goes on where it was stopped, and that training takes it."""

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import SAMPLE
from hydra import compose, initialize_config_dir
from seeded import seeded

from acge_lightning.commands import mine as command
from acge_lightning.commands.checks import check
from acge_lightning.commands.single_run import train
from acge_lightning.config.sources import config_dir
from acge_lightning.embed.cache import Embeddings
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.fingerprint import encoder_hash
from acge_lightning.errors import InputError
from acge_lightning.export.sentence_transformers import export
from acge_lightning.zoo.pretrained import load

SAMPLE_FAQ = SAMPLE / "retrieval" / "sample_zh"
QUERIES = 250  # judgements of the training split that are used


def composed(name, *overrides):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(name, ["paths.output_dir=.", *overrides])


@pytest.fixture(scope="module")
def faq(tmp_path_factory):
    """A part of the sample's retrieval folder."""
    folder = tmp_path_factory.mktemp("data") / "faq"
    shutil.copytree(SAMPLE_FAQ, folder)
    file = folder / "qrels" / "train.tsv"
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[: QUERIES + 1]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def small_encoder(small_encoder, tmp_path_factory):
    return seeded(small_encoder, tmp_path_factory.mktemp("encoder") / "seeded")


@pytest.fixture
def mined(tmp_path, small_encoder, cache, faq):
    """Mines as the command does, and reads the rows."""

    def run(*overrides, out="mined", file="train.jsonl"):
        given = {"model": str(small_encoder), "source": f"[{faq}]", "near": "null"}
        given |= dict(o.split("=", 1) for o in overrides) | {"out": str(tmp_path / out), "file": file}
        given.setdefault("paths.cache_dir", str(cache))
        command.run(composed("mine", *(f"{key}={value}" for key, value in given.items())))
        opened = gzip.open if file.endswith(".gz") else open
        with opened(tmp_path / out / file, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    return run


def lines(file):
    with gzip.open(file, "rt", encoding="utf-8") as rows:
        return [json.loads(row) for row in rows]


def judged(faq):
    """Query -> texts that any split judges positive; and the queries of the training split."""
    texts = {row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in lines(faq / "corpus.jsonl.gz")}
    queries = {row["_id"]: row["text"].strip() for row in lines(faq / "queries.jsonl.gz")}
    positives, of_train = {}, []
    for role in ("train", "dev", "test"):
        for line in (faq / "qrels" / f"{role}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
            query, document, grade = line.split("\t")
            if float(grade) > 0:
                positives.setdefault(queries[query], set()).add(texts[document])
                of_train += [queries[query]] if role == "train" else []
    return positives, list(dict.fromkeys(of_train)), set(texts.values())


def test_rows_of_a_retrieval_folder(mined, tmp_path, capsys, faq):
    rows = mined("negatives=3", "reference=highest", "scores=true")
    positives, queries, texts = judged(faq)
    assert sorted(row["query"] for row in rows) == sorted(queries)
    for row in rows:
        assert set(row["positive"]) <= positives[row["query"]]
        assert not positives[row["query"]] & set(row["negative"])
        assert set(row["negative"]) <= texts
        assert len(set(row["negative"])) == len(row["negative"]) <= 3
        assert row["negative_scores"] == sorted(row["negative_scores"], reverse=True)
        highest = max(row["positive_scores"])
        assert all(score <= highest - 0.05 * abs(highest) + 1e-6 for score in row["negative_scores"])
    manifest = json.loads((tmp_path / "mined" / "manifest.json").read_text(encoding="utf-8"))
    told = capsys.readouterr().out
    counts = manifest["counts"]
    assert counts["negatives"] == sum(len(row["negative"]) for row in rows) > 10
    assert counts["queries"] == manifest["rows"] == len(rows)
    short = sum(len(row["negative"]) < 3 for row in rows)
    assert counts["queries with fewer than wanted"] == short
    for words, number in {"queries": len(rows), "negatives": counts["negatives"], "queries with fewer than 3": short}.items():
        assert re.search(rf"│ {words} +│ +{number:,} │", told), words
    for reason, number in counts["removed"].items():
        assert re.search(rf"removed: {reason} +│ +{number:,} │", told), reason
    digests = {entry["file"]: entry["sha256"] for entry in manifest["sources"]}
    for file in (faq / "corpus.jsonl.gz", faq / "qrels" / "dev.tsv"):
        assert digests[f"{file.parent.name}/{file.name}"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert manifest["rules"]["relative_margin"] == 0.05


def test_scores_are_those_of_the_encoder(mined, small_encoder):
    encoder = load(small_encoder)
    for row in mined("scores=true", "negatives=2", "reference=highest")[:40]:
        cosines = encoder.encode([*row["positive"], *row["negative"]]) @ encoder.encode(row["query"]).T
        expected = pytest.approx(cosines[:, 0].tolist(), abs=2e-6)
        assert [*row["positive_scores"], *row["negative_scores"]] == expected


@pytest.mark.parametrize(
    ("reference", "remedy"),
    [("lowest", "reference=mean"), ("mean", "reference=highest"), ("highest", "a smaller margin, or null,")],
)
def test_queries_without_negatives_are_told_what_gives_them_some(mined, capsys, reference, remedy):
    assert not any(row["negative"] for row in mined("relative_margin=0.999", f"reference={reference}", "range_max=20"))
    said = " ".join(capsys.readouterr().out.split())
    assert f"Many queries have none: {remedy}" in said
    assert "; or range_max=200 looks deeper" in said


def test_queries_that_share_their_only_answer_are_not_told_of_margins(tmp_path, small_encoder, cache, capsys):
    rows = [{"query": f"第{i}个问题怎么退货？", "positive": "七天内免费。"} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [
        f"model={small_encoder}",
        f"source={tmp_path / 'rows.jsonl'}",
        f"out={tmp_path / 'out'}",
        f"paths.cache_dir={cache}",
    ]
    command.run(composed("mine", *given))
    said = " ".join(capsys.readouterr().out.split())
    assert "queries without negatives │ 30" in said
    assert "Many queries" not in said


def test_the_same_run_writes_the_same_bytes(mined, tmp_path):
    mined("sampling=random", "seed=3", out="a", file="train.jsonl.gz")
    mined("sampling=random", "seed=3", "paths.cache_dir=" + str(tmp_path / "other"), out="b", file="train.jsonl.gz")
    mined("sampling=random", "seed=4", out="c", file="train.jsonl.gz")
    contents = [(tmp_path / name / "train.jsonl.gz").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    mined("sampling=random", "seed=4", out="a", file="train.jsonl.gz")
    assert (tmp_path / "a" / "train.jsonl.gz").read_bytes() == contents[2], "a folder that was written here is replaced"


def test_training_takes_the_folder_as_it_is(mined, tmp_path, small_encoder, cache, caplog):
    mined("negatives=2", "reference=mean", "scores=true")
    seen = []
    given = ["task=[triplets]", f"+paths.data={tmp_path / 'mined'}", f"paths.output_dir={tmp_path / 'run'}", "debug=fast"]
    given += [f"paths.cache_dir={cache}", "callbacks.progress=null", "encoder=pretrained", f"encoder.path={small_encoder}"]
    forward = Encoder.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Encoder, "forward", lambda self, tokens, *a, **k: (seen.append(len(tokens)), forward(self, tokens, *a, **k))[1]
        )
        assert 0 <= train(composed("train", *given)) <= 1
    assert (tmp_path / "run" / "export" / "modules.json").is_file()
    assert any(count > 64 for count in seen), "32 queries, 32 positives, and negatives"
    assert "manifest" not in caplog.text


# ---- vectors that are kept


def test_after_fine_tuning_no_old_vector_is_used(mined, tmp_path, small_encoder):
    before = mined("scores=true", out="before")
    encoder = load(small_encoder)
    with torch.no_grad():
        encoder.backbone.embedding.weight.copy_(encoder.backbone.embedding.weight.flip(1).roll(7, 0))
    tuned = str(export(encoder, tmp_path / "tuned"))
    after = mined(f"model={tuned}", "scores=true", out="after")
    fresh = mined(f"model={tuned}", "scores=true", f"paths.cache_dir={tmp_path / 'none'}", out="fresh")
    assert after == fresh != before
    hashes = [json.loads((tmp_path / n / "manifest.json").read_text())["model"]["hash"] for n in ("before", "after")]
    assert hashes == [encoder_hash(load(small_encoder)), encoder_hash(load(tuned))]
    assert hashes[0] != hashes[1]


def test_a_prompt_has_vectors_of_its_own(mined, tmp_path, small_encoder):
    with_prompt = str(export(load(small_encoder, prompts={"query": "怎么退货，公园，公园"}), tmp_path / "prompted"))
    without = mined(f"model={with_prompt}", out="without")
    assert mined(f"model={with_prompt}", "prompts={query: query}", out="with") != without


def test_a_killed_run_goes_on_with_the_texts_that_are_not_embedded_yet(mined, tmp_path, monkeypatch, faq):
    monkeypatch.setattr("acge_lightning.mining.negatives.miner._TEXTS", 100)
    encode, embedded = Embeddings.encode, []

    class Killed(BaseException):
        pass

    def until(limit):
        def counting(self, texts, prompt=None):
            if len(embedded) >= limit:
                raise Killed
            missing = len(set(texts))
            embedded.append(missing)
            return encode(self, texts, prompt)

        return counting

    monkeypatch.setattr(Embeddings, "encode", until(4))
    with pytest.raises(Killed):
        mined(f"paths.cache_dir={tmp_path / 'cache'}")
    assert not (tmp_path / "mined").exists()
    monkeypatch.setattr(Embeddings, "encode", encode)
    newly, original = [], Encoder.encode
    monkeypatch.setattr(
        Encoder, "encode", lambda self, texts, *a, **k: (newly.extend(texts), original(self, texts, *a, **k))[1]
    )
    rows = mined(f"paths.cache_dir={tmp_path / 'cache'}")
    _, queries, texts = judged(faq)
    assert len(newly) == len(set(queries) | texts) - sum(embedded)
    assert rows == mined(out="whole")


# ---- other sources, other scorers


def write(file, rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def test_rows_of_several_files_and_further_texts(mined, tmp_path):
    a = write(tmp_path / "a.jsonl", [{"问题": "怎么退货", "答案": "七天内可以退货"}, {"问题": "发票", "答案": "在订单页申请"}])
    (tmp_path / "b.csv").write_text("anchor,positive,negative\n怎么退货？,联系客服,今天天气很好\n", encoding="utf-8")
    more = write(tmp_path / "more.jsonl", [{"text": "我们去公园"}, {"text": "联系客服！"}])
    rows = mined(f"source=[{a},{tmp_path / 'b.csv'}]", f"corpus={more}", "relative_margin=null", "negatives=9", "scores=true")
    assert [row["query"] for row in rows] == ["怎么退货", "发票", "怎么退货？"]
    assert set(rows[0]["negative"]) == {"在订单页申请", "今天天气很好", "我们去公园"}, "nor what a variant of it is answered by"
    assert rows[2]["negative"][0] == "今天天气很好", "what is listed stays, before the others"
    assert set(rows[2]["negative"]) == {"在订单页申请", "今天天气很好", "我们去公园"}
    assert [len(row["negative_scores"]) for row in rows] == [len(row["negative"]) for row in rows]


def test_bm25_needs_no_encoder(mined):
    rows = mined("model=bm25", "negatives=4", "relative_margin=null")
    assert sum(len(row["negative"]) for row in rows) > 500


def test_a_second_scorer_decides(mined, tmp_path, small_encoder):
    encoder = load(small_encoder)
    rows = mined("model=bm25", f"scorer={small_encoder}", "scores=true", "relative_margin=-0.1", "negatives=2", "denoise=false")
    assert sum(len(row["negative"]) for row in rows) > 10
    for row in rows[:50]:
        cosines = (encoder.encode([*row["positive"], *row["negative"]]) @ encoder.encode(row["query"]).T)[:, 0].tolist()
        assert [*row["positive_scores"], *row["negative_scores"]] == pytest.approx(cosines, abs=2e-6)
        assert all(
            score <= min(row["positive_scores"]) + 0.1 * abs(min(row["positive_scores"])) + 1e-6
            for score in row["negative_scores"]
        )
    manifest = json.loads((tmp_path / "mined" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["hash"] is None
    assert manifest["scorer"]["hash"] == encoder_hash(encoder)


# ---- what is told, and what is refused


def test_short_queries_are_kept_or_dropped_and_counted(mined, tmp_path, capsys):
    kept = mined(out="kept")
    dropped = mined("short=drop", out="dropped")
    assert dropped == [row for row in kept if len(row["negative"]) == 5]
    assert 0 < len(dropped) < len(kept)
    assert re.search(rf"│ queries without a row +│ +{len(kept) - len(dropped)} │", capsys.readouterr().out)
    with pytest.raises(InputError, match="no query has enough negatives: short=keep keeps them"):
        mined("short=drop", "max_score=-1", out="none")
    assert not (tmp_path / "none").exists()


def test_a_corpus_smaller_than_the_window_is_said(mined, tmp_path, capsys):
    rows = write(tmp_path / "a.jsonl", [{"query": "a", "positive": "b"}, {"query": "c", "positive": "d"}])
    mined(f"source={rows}")
    assert "There are 2 texts, fewer than range_max=100: all of them are looked at" in capsys.readouterr().out
    with pytest.raises(InputError, match="range_min=50 passes over all 2 texts"):
        mined(f"source={rows}", "range_min=50", out="other")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"short": "skip"}, "short=skip is unknown: choose keep or drop"),
        ({"file": "rows.csv"}, "file=rows.csv is unknown"),
        ({"negatives": "0"}, "negatives=0 must be"),
        ({"prompts": "{query: x}"}, "prompts.query=x is unknown: this encoder has no prompts"),
        ({"prompts": "{text: x}"}, "prompts.text is no role: choose from query, document"),
        ({"near": "3"}, "near=3 is no similarity"),
        ({"source": "[]"}, "source=[] names nothing"),
        ({"columns": "{quer: x}"}, "columns.quer is no field"),
        ({"splits": "{train: nothing}"}, "has no train split"),
    ],
)
def test_settings_that_cannot_work(given, message, small_encoder, tmp_path, faq):
    values = {"model": small_encoder, "source": f"[{faq}]", "out": tmp_path / "out", "paths.cache_dir": tmp_path} | given
    with pytest.raises(InputError) as error:
        command.run(composed("mine", *(f"{key}={value}" for key, value in values.items())))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_refused_before_any_work(tmp_path, small_encoder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt"):
        command.run(composed("mine", f"model={small_encoder}", "source=nowhere", f"out={tmp_path / 'out'}"))


def test_sources_that_are_not_there_are_told_before_anything_is_loaded(small_encoder, tmp_path):
    shutil.copy(SAMPLE_FAQ / "corpus.jsonl.gz", tmp_path / "corpus.jsonl.gz")
    with pytest.raises(InputError, match=r"source=.*nowhere\.csv is not there"):
        check("mine", composed("mine", f"model={small_encoder}", f"source=[{tmp_path}/nowhere.csv]", "out=x"))
    with pytest.raises(InputError, match="'tfidf' is no folder"):
        check("mine", composed("mine", "model=tfidf", f"source=[{tmp_path}]", "out=x"))


@pytest.mark.heavy
def test_kill_9_at_any_moment_and_start_again(tmp_path, small_encoder):
    """Killed after more and more of its time; the run that ends then writes the bytes of one that was never killed."""

    def start(out, cache):
        words = ["mine", str(small_encoder), str(SAMPLE_FAQ), f"out={out}", f"paths.cache_dir={cache}", "sampling=random"]
        command = [sys.executable, "-m", "acge_lightning", *words]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    begin = time.monotonic()
    assert start("whole", "cache").wait() == 0
    seconds = time.monotonic() - begin
    killed = 0
    for share in (0.4, 0.6, 0.75, 0.9):
        process = start("killed", "other")
        try:
            process.wait(share * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            killed += process.wait() < 0
        if (tmp_path / "killed").exists():  # it was whole already
            assert (tmp_path / "killed" / "train.jsonl").read_bytes() == (tmp_path / "whole" / "train.jsonl").read_bytes()
            shutil.rmtree(tmp_path / "killed")
    assert killed
    assert start("killed", "other").wait() == 0
    contents = [(tmp_path / out / "train.jsonl").read_bytes() for out in ("whole", "killed")]
    assert contents[0] == contents[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "killed", "other", "whole"], "no draft is left"

"""What several test files need: a small encoder on disk, and a data folder in the layout of the real one."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest

import acge_lightning

SAMPLE = Path(acge_lightning.__file__).parent / "sample"
NOTES = ["今天天气很好，我们去公园。", "怎么退货？", "how do I return this", "天气", "我们怎么去公园？"]
SAMPLE_ROWS = {"train": 400, "test": 60}  # of a file of the sample, by its name, in `data_sets`
FAMILIES = ("classification", "clustering", "pair", "reranking", "retrieval", "sts", "unlabelled")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The folder of checked rows that all tests of a session share."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ACGE_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory):
    """Folder of a small static encoder, exported."""
    from acge_lightning.encoder.build import static
    from acge_lightning.encoder.vocabulary import train_vocabulary
    from acge_lightning.export.sentence_transformers import export

    tokenizer = train_vocabulary(["今天天气很好，我们去公园。", "怎么退货？", "how do I return this"] * 3, "bpe", 200)
    return export(static(tokenizer, dim=16), tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="session")
def cleaning_encoder(tmp_path_factory):
    """Folder of a small static encoder whose tokenizer drops characters without width, so that a text may have no token."""
    from acge_lightning.encoder.build import static
    from acge_lightning.encoder.vocabulary import train_vocabulary
    from acge_lightning.export.sentence_transformers import export

    tokenizer = train_vocabulary(
        ["今天天气很好，我们去公园。", "怎么退货？", "how do I return this 2024"] * 3, "wordpiece", 200
    )
    return export(static(tokenizer, dim=16), tmp_path_factory.mktemp("encoder") / "cleaning")


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory):
    """The packaged sample, of each file fewer rows, under the name of every data set that a task names."""
    from acge_lightning.config.sources import config_dir

    sample, folder = tmp_path_factory.mktemp("sample"), tmp_path_factory.mktemp("data")
    for file in (file for file in SAMPLE.rglob("*") if file.is_file()):
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            rows = list(lines)[: SAMPLE_ROWS.get(file.name.partition(".")[0])]
        smaller = sample / file.relative_to(SAMPLE).with_suffix("" if file.suffix == ".gz" else file.suffix)
        smaller.parent.mkdir(parents=True, exist_ok=True)
        smaller.write_text("".join(rows), encoding="utf-8")
    for file in (config_dir() / "task").glob("*.yaml"):
        for path in re.findall(r"\$\{paths\.data_dir\}/([^\s\",\]]+)", file.read_text(encoding="utf-8")):
            family, name, *names = path.replace("*", "all").split("/")
            source = sample / {"triplet": "reranking", "pairs": "reranking"}.get(family, family) / "sample_zh"
            place = folder / family / name
            if names:  # a file of the folder, compressed
                place.mkdir(parents=True, exist_ok=True)
                with gzip.open(place / names[0], "wb") as written:
                    written.write((source / names[0].removesuffix(".gz")).read_bytes())
            else:
                place.parent.mkdir(exist_ok=True)
                place.symlink_to(source)
    return folder


@pytest.fixture
def notes(tmp_path):
    """A folder of texts in files of several kinds, with what is no text beside them."""
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text(f"\n{NOTES[0]}\n  \n{NOTES[1]}\n", encoding="utf-8")
    (folder / "b.md").write_text("# 退货\n\nhow do I\nreturn this\n\n\n天气\n", encoding="utf-8")
    (folder / "more" / "c.jsonl").write_text(json.dumps({"text": NOTES[4], "n": 1}) + "\n", encoding="utf-8")
    with gzip.open(folder / "more" / "d.csv.gz", "wt", encoding="utf-8") as file:
        file.write('text,label\n"退货，公园",1\n')
    (folder / ".hidden.txt").write_text("not this")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def make(tmp_path):
    """Makes a data set of a family, of `tests/data/family_rows.py`, on `tmp_path`; its cache lies beside it."""
    from family_rows import FAMILIES

    return lambda family, path=tmp_path, **options: FAMILIES[family](path, cache_dir=tmp_path / "cache", **options)

"""What `acge clean` and `acge mine` record of rows goes with what the rows train."""

import json

import pytest
import torch
from test_conf import composed

from acge_lightning.commands import clean, mine
from acge_lightning.config.overrides import arguments, with_names
from acge_lightning.data import ClassificationDataset, MixtureDataModule, RetrievalDataset
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.export.model_card import model_card

WORDS = ["退货", "物流", "发票", "换货", "优惠", "会员", "支付", "地址", "保修", "安装"]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two data sets, cleaned, and negatives that were mined for one of them."""
    root = tmp_path_factory.mktemp("made of")
    texts = [{"text": f"{one}和{other}的问题怎么办", "label": one} for one in WORDS for other in WORDS]
    write(root / "data/classification/topic/train.jsonl", [*texts, texts[0], texts[0]])
    rows = [
        {"query": f"怎么{one}{other}", "positive": [f"{one}请看{other}的说明，三天内处理"]} for one in WORDS for other in WORDS
    ]
    write(root / "data/retrieval/faq/train.jsonl", rows)
    run(clean, "clean", f"source={root / 'data'}", f"out={root / 'cleaned'}")
    run(
        mine,
        "mine",
        "model=bm25",
        f"source={root / 'cleaned/retrieval/faq'}",
        f"out={root / 'mined'}",
        f"paths.output_dir={root}",
    )
    return root


def run(command, name, *words):
    command.run(with_names(composed(arguments(words), name)))


def test_rows_know_how_they_were_cleaned(folder, tmp_path):
    record = ClassificationDataset(folder / "cleaned/classification/topic", cache_dir=tmp_path).made_of
    assert record["made_by"].startswith("acge clean, acge-lightning ")
    assert record["counts"] == {"classification/topic": record["counts"]["classification/topic"]}
    assert record["counts"]["classification/topic"]["left_out"] == {"exact duplicate": 2}
    assert list(record["sources"]) == ["classification/topic"]
    assert record["changed"] == []


def test_mined_rows_know_what_they_were_mined_from(folder, tmp_path):
    record = RetrievalDataset(folder / "mined/train.jsonl", cache_dir=tmp_path).made_of
    assert record["made_by"].startswith("acge mine, ")
    assert record["model"]["name"] == "bm25"
    assert [list(source["counts"]) for source in record["made_of"]] == [["retrieval/faq"]]


def test_rows_that_changed_since_say_so(folder, tmp_path):
    file = folder / "mined/train.jsonl"
    before = file.read_text(encoding="utf-8")
    try:
        file.write_text(before + before.splitlines()[0] + "\n", encoding="utf-8")
        assert RetrievalDataset(folder / "mined", cache_dir=tmp_path).made_of["changed"] == ["train.jsonl"]
    finally:
        file.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"made_by": 3}', '{"made_by": "somebody"}'])
def test_a_manifest_of_somebody_else_says_nothing(tmp_path, content):
    write(tmp_path / "train.jsonl", [{"text": word, "label": word} for word in WORDS])
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    assert ClassificationDataset(tmp_path, cache_dir=tmp_path / "cache").made_of is None


def test_a_checkpoint_and_a_model_card_tell_it(folder, tmp_path):
    tasks = {
        "topic": ClassificationDataset(folder / "cleaned/classification/topic", cache_dir=tmp_path),
        "faq": RetrievalDataset(folder / "mined", cache_dir=tmp_path),
        "raw": RetrievalDataset(folder / "data/retrieval/faq", cache_dir=tmp_path),
    }
    mixture = MixtureDataModule(tasks)
    torch.save(mixture.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(state["made_of"]) == {"topic", "faq"}
    encoder = static(train_vocabulary(mixture.train_texts(), kind="unigram", vocab_size=200), dim=8)
    coverage = {name: {"rows": task.rows} for name, task in mixture.coverage().items()}
    card = model_card(encoder, "ours", {"coverage": coverage, "made_of": mixture.made_of})
    topic, faq, raw = (next(line for line in card.splitlines() if line.startswith(f"| {name} ")) for name in tasks)
    assert "exact duplicate: 2 left out" in topic
    assert "negatives from bm25" in faq
    assert raw.endswith("|  |")

"""Learnt vocabularies: segmentation, sizes, round trips, and the same result twice."""

import random
import sys
import tracemalloc

import pytest
from transformers import AutoTokenizer

from acge_lightning.encoder.pca import sample_texts
from acge_lightning.encoder.vocabulary import Texts, _sample, train_vocabulary
from acge_lightning.errors import InputError

WORDS = [
    "今天",
    "天气",
    "很好",
    "公园",
    "散步",
    "我们",
    "喜欢",
    "手机",
    "屏幕",
    "质量",
    "coffee",
    "Machine",
    "learning",
    "2024",
]
KINDS = ["wordpiece", "unigram", "bpe"]


def sentences(n=400, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choices(WORDS, k=rng.randint(2, 6))) + "，" + "".join(rng.choices(WORDS, k=3)) + "。" for _ in range(n)]


def test_wordpiece_equals_berts_way_of_splitting():
    tokenizer = train_vocabulary(["今天 Machine learning!", "learning machines"] * 10, vocab_size=200)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.tokenize("今天LEARNING，machine") == ["今", "天", "learning", "[UNK]", "machine"]
    ids = tokenizer("今天")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "今", "天", "[SEP]"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "今 天"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_words_of_several_characters_become_tokens(kind):
    tokenizer = train_vocabulary(sentences(), kind, vocab_size=80)
    tokens = tokenizer.tokenize("今天天气很好，公园散步")
    assert "".join(tokens) == "今天天气很好,公园散步"
    assert len(tokens) <= 8
    assert "," in tokens
    assert tokenizer.convert_ids_to_tokens([0, 1]) == ["[PAD]", "[UNK]"]
    assert tokenizer.tokenize("ＣＯＦＦＥＥ") == tokenizer.tokenize("coffee")
    assert tokenizer("今天")["input_ids"] == tokenizer("今天", add_special_tokens=False)["input_ids"]
    assert tokenizer("龘")["input_ids"] == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_case_is_kept_on_request(kind):
    texts = ["Machine machine MACHINE"] * 20
    kept, folded = (train_vocabulary(texts, kind, 60, lowercase=lower) for lower in (False, True))
    assert kept("MACHINE")["input_ids"] != kept("machine")["input_ids"]
    assert folded("MACHINE")["input_ids"] == folded("machine")["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_both_scripts_give_the_same_tokens_on_request(kind, tmp_path):
    texts = ["漢語繁體字", "汉语繁体字与Coffee"] * 20
    folded, kept = (train_vocabulary(texts, kind, 80, fold_scripts=fold) for fold in (True, False))
    folded.save_pretrained(tmp_path)
    for tokenizer in (folded, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer("漢語繁體字與COFFEE")["input_ids"] == tokenizer("汉语繁体字与coffee")["input_ids"]
    assert 1 not in folded("漢語")["input_ids"]
    assert kept("漢語")["input_ids"] != kept("汉语")["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_same_texts_give_the_same_tokenizer(kind):
    first, second = (train_vocabulary(iter(sentences(300)), kind, 120).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("kind", KINDS)
def test_auto_tokenizer_reads_it_back(kind, tmp_path):
    tokenizer = train_vocabulary(sentences(), kind, 100)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*sentences(20, seed=1), "unseen 文字 🙂", ""]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert (again.pad_token_id, again.unk_token_id, again.mask_token) == (0, 1, tokenizer.mask_token)


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_stays_within_its_size_with_more_characters_than_that(kind):
    texts = ["".join(chr(0x4E00 + (i * 37 + j) % 3000) for j in range(30)) + "，常用" for i in range(300)]
    tokenizer = train_vocabulary(texts, kind, vocab_size=200)
    assert len(tokenizer) <= 200
    assert 1 not in tokenizer("常用", add_special_tokens=False)["input_ids"]


def test_limits_take_an_evenly_spaced_sample():
    texts = ["甲" * 10] * 50 + ["乙" * 10] * 50
    for limits in ({"max_texts": 4}, {"max_characters": 40}):
        vocabulary = train_vocabulary(texts, "bpe", 50, **limits).get_vocab()
        assert {"甲", "乙"} <= set(vocabulary)
    assert "乙" not in train_vocabulary(texts, "bpe", 50, max_texts=1).get_vocab()


def repeated(texts):
    return Texts(lambda: iter(texts))


@pytest.mark.parametrize("limits", [(7, 10**6), (100, 900), (10**6, 10**6), (1, 10**6), (10**6, 1)])
def test_the_sample_is_the_same_however_texts_are_given(limits):
    texts = [f"{'字' * (i % 17)}{i}" if i % 5 else " " for i in range(200)]
    rows = [text for text in texts if text.strip()]
    share = min(1.0, limits[0] / len(rows), limits[1] / sum(map(len, rows)))
    count = max(1, int(len(rows) * share))
    expected = [rows[i * len(rows) // count] for i in range(count)]
    for given in (texts, repeated(texts), iter(texts)):
        assert _sample(given, *limits) == expected


@pytest.mark.parametrize("draw", [lambda texts: _sample(texts, 10, 10**9), lambda texts: sample_texts(texts, 10)])
def test_only_the_sample_is_kept(draw):
    texts = Texts(lambda: (f"{i} " + "字" * 1000 for i in range(10_000)))  # 20 MB
    tracemalloc.start()
    assert len(draw(texts)) == 10
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_short_text_is_enough(kind):
    assert 1 not in train_vocabulary(["好"], kind)("好")["input_ids"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "no texts"),
        ((["", "  "],), "no texts"),
        ((["a"], "sentencepiece"), "'sentencepiece' is unknown"),
        ((["a"], "wordpiece", 5), "vocab_size=5"),
    ],
)
def test_errors_say_what_is_wrong(arguments, message):
    with pytest.raises(InputError, match=message):
        train_vocabulary(*arguments)


def test_a_folder_of_somebody_else_is_kept(tmp_path, monkeypatch, cache):
    from acge_lightning.commands import cli

    def learn(folder, size):
        given = ["acge", "vocabulary", f"output={folder}", f"vocabulary.vocab_size={size}", f"paths.cache_dir={cache}"]
        monkeypatch.setattr(sys, "argv", [*given, "+task.sample_unlabelled.data.max_train=50"])
        monkeypatch.chdir(tmp_path)
        cli.main()

    learn(tmp_path / "words", 200)
    learn(tmp_path / "words", 100)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "words")) <= 100
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("mine")
    with pytest.raises(SystemExit, match=r"model holds tokenizer\.json, and no acge\.json of ours: it is kept"):
        learn(tmp_path / "model", 100)
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "mine"


def test_of_one_endless_text_no_more_than_the_limit_is_learnt_from():
    text = "今天天气很好 good weather " * 20 + "X" * 2000
    found = train_vocabulary([text], "bpe", 60, max_characters=200)
    assert found.get_vocab() == train_vocabulary([text[:200]], "bpe", 60).get_vocab()
    assert found.get_vocab() != train_vocabulary([text], "bpe", 60).get_vocab()

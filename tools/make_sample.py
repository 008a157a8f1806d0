"""Composes the Chinese sample data of all seven task families: ``python tools/make_sample.py [--out DIR]``.

A *meaning* is an intent and one value of its slot. A sentence is a phrasing of the intent with synonyms filled in;
the hash of its letters places it in train, dev or test once for all families, so no split can leak into another.
"""

import argparse
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import chain, product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from sample_grammar import CLOSERS, DOMAIN_NOTES, INTENTS, LINKS, OPENERS, SLOT_NAMES, SLOTS, SYNONYMS

Row = dict[str, Any]
SPLITS = ("train", "dev", "test")
NAME = "sample_zh"
SEED = 20240601


class Meaning(NamedTuple):
    """An intent and the index of a value of its slot."""

    intent: str
    value: int

    @property
    def domain(self) -> str:
        """The first part of the intent's name."""
        return self.intent.partition(".")[0]

    @property
    def thing(self) -> tuple[str, int]:
        """What the meaning is about, shared by intents of one slot."""
        return INTENTS[self.intent].slot, self.value


def letters(text: str) -> str:
    """The text without case, punctuation and spaces: what makes two texts the same."""
    return re.sub(r"[\W_]", "", text.lower())


def split_of(sentence: str) -> str:
    """The split of a sentence, by a stable hash: about 70 % train, 15 % dev, 15 % test."""
    percent = int(hashlib.sha256(letters(sentence).encode()).hexdigest(), 16) % 100
    return "train" if percent < 70 else "dev" if percent < 85 else "test"


def choices(template: str, things: list[str]) -> list[list[str]]:
    """The pieces of a template, each with its choices: ``{}`` is one of the things, ``{词}`` a synonym, else itself."""
    pieces = re.split(r"({.*?})", template)
    return [things if p == "{}" else SYNONYMS[p[1:-1]] if p.startswith("{") else [p] for p in pieces]


def sentences() -> dict[str, dict[Meaning, list[list[str]]]]:
    """By split and meaning, the sentences of each phrasing."""
    space: dict[str, dict[Meaning, list[list[str]]]] = {split: {} for split in SPLITS}
    for name, intent in INTENTS.items():
        for value, things in enumerate(SLOTS[intent.slot]):
            for template in intent.say:
                texts_of_split: dict[str, list[str]] = {}
                for text in map("".join, product(*choices(template, things))):
                    texts_of_split.setdefault(split_of(text), []).append(text if text.endswith("？") else text + "。")
                for split, texts in texts_of_split.items():
                    space[split].setdefault(Meaning(name, value), []).append(texts)
    return space


SENTENCES = sentences()


def overlap(a: str, b: str) -> float:
    """Jaccard similarity of the character bigrams of two texts."""
    x, y = ({t[i : i + 2] for i in range(len(t) - 1)} for t in (letters(a), letters(b)))
    return len(x & y) / max(1, len(x | y))


class Composer:
    """Composes the rows of one split of one family."""

    def __init__(self, family: str, split: str) -> None:
        self.sentences = SENTENCES[split]
        self.rng = Random(f"{SEED} {family} {split}")

    def meaning(self, *conditions: Callable[[Meaning], bool]) -> Meaning:
        """A meaning for which the first condition holds, or else the next one, or else any."""
        matches = (list(filter(condition, self.sentences)) for condition in conditions)
        return self.rng.choice(next(filter(None, matches), list(self.sentences)))

    def core(self, meaning: Meaning) -> str:
        """A sentence of the meaning."""
        return self.rng.choice(self.rng.choice(self.sentences[meaning]))

    def say(self, meaning: Meaning) -> str:
        """A sentence with, now and then, a polite opener or closer."""
        opener = self.rng.choice(OPENERS) if self.rng.random() < 0.15 else ""
        closer = self.rng.choice(CLOSERS) if self.rng.random() < 0.15 else ""
        return opener + self.core(meaning) + closer

    def like(self, text: str, meaning: Meaning) -> str:
        """Of two sentences of the meaning, the one which looks more like the text."""
        return max((self.say(meaning) for _ in range(2)), key=lambda t: overlap(text, t))

    def other_thing(self, m: Meaning) -> Meaning:
        """The same intent about another thing."""
        return self.meaning(lambda o: o.intent == m.intent and o.value != m.value)

    def other_intent(self, m: Meaning) -> Meaning:
        """Another intent of the domain, about the same thing if there is one."""
        return self.meaning(
            lambda o: o.intent != m.intent and o.thing == m.thing,
            lambda o: o.intent != m.intent and o.domain == m.domain,
        )

    def related(self, m: Meaning) -> Meaning:
        """Another intent of the domain, about another thing."""
        return self.meaning(lambda o: o.domain == m.domain and o.intent != m.intent and o.thing != m.thing)

    def unrelated(self, m: Meaning) -> Meaning:
        """A meaning of another domain."""
        return self.meaning(lambda o: o.domain != m.domain)


def sts(c: Composer) -> Iterator[Row]:
    """Sentences, each with three others, scored by how much of the meaning they share."""
    kinds = [(None, 4.75), (c.other_thing, 3.0), (c.other_intent, 1.8), (c.related, 1.1), (c.unrelated, 0.1)]
    while True:
        m = c.meaning()
        text = c.say(m)
        for choose, base in c.rng.sample(kinds, 3):
            other = c.like(text, choose(m)) if choose else c.say(m)
            score = max(0.0, base + c.rng.uniform(-0.25, 0.25))
            yield {"text1": text, "text2": other, "score": round(score, 1)}


def pair(c: Composer) -> Iterator[Row]:
    """Sentences, each with one of the same meaning and one which differs in the thing, in the intent or in both."""
    while True:
        m = c.meaning()
        text = c.say(m)
        other = c.rng.choice([c.other_thing, c.other_intent, c.related, c.unrelated])(m)
        yield {"text1": text, "text2": c.say(m), "label": 1}
        yield {"text1": text, "text2": c.like(text, other), "label": 0}


def classification(c: Composer) -> Iterator[Row]:
    """Sentences labelled with their intent."""
    while True:
        m = c.meaning()
        yield {"text": c.say(m), "label": m.intent}


def clustering(c: Composer) -> Iterator[Row]:
    """Two sentences about one thing, labelled with their domain."""
    while True:
        m = c.meaning()
        yield {"text": c.core(m) + c.core(c.other_intent(m)), "label": m.domain}


def reranking(c: Composer) -> Iterator[Row]:
    """A sentence, some of its meaning, and more which are close to it in thing, intent or look."""
    while True:
        m = c.meaning()
        text = c.say(m)
        negatives = [c.other_thing, c.other_thing, c.other_intent, c.other_intent]
        negatives += c.rng.choices([c.related, c.unrelated], k=c.rng.randint(0, 3))
        yield {
            "query": text,
            "positive": [c.say(m) for _ in range(c.rng.randint(1, 3))],
            "negative": [c.like(text, other(m)) for other in negatives],
        }


def unlabelled(c: Composer) -> Iterator[Row]:
    """Sentences and, for a quarter, longer texts of one domain."""
    while True:
        m = c.meaning()
        text = c.say(m)
        if c.rng.random() < 0.25:
            for _ in range(c.rng.randint(1, 3)):
                text += c.rng.choice(LINKS) + c.core(c.other_intent(m))
        yield {"text": text}


FAMILIES: dict[str, tuple[Callable[[Composer], Iterator[Row]], tuple[int, ...]]] = {
    "sts": (sts, (2000, 300, 300)),
    "pair": (pair, (2000, 300, 300)),
    "classification": (classification, (1500, 300, 300)),
    "clustering": (clustering, (800, 300, 300)),
    "reranking": (reranking, (300, 100, 100)),
    "unlabelled": (unlabelled, (2000,)),
}


def texts_of(row: Row) -> list[str]:
    """All texts of a row; identifiers, titles, labels and scores are none."""
    fields = (row[k] for k in ("text", "text1", "text2", "query", "positive", "negative") if k in row)
    return list(chain.from_iterable([f] if isinstance(f, str) else f for f in fields))


def take(rows: Iterator[Row], count: int) -> list[Row]:
    """The first rows which repeat neither an earlier row nor a text of their own."""
    seen: set[tuple[str, ...]] = set()
    result: list[Row] = []
    while len(result) < count:
        row = next(rows)
        key = tuple(map(letters, texts_of(row)))
        if key not in seen and len(set(key)) == len(key):
            seen.add(key)
            result.append(row)
    return result


def corpus() -> dict[tuple[str, int], Row]:
    """Help-centre passages by intent and value; every other intent has a general one, too, with the value -1."""
    rng = Random(f"{SEED} corpus")
    docs: dict[tuple[str, int], Row] = {}
    for number, (name, intent) in enumerate(INTENTS.items()):
        things = list(enumerate(SLOTS[intent.slot])) + [(-1, [SLOT_NAMES[intent.slot]])] * (number % 2)
        for value, names in things:
            passage = [rng.choice(intent.lead).format(rng.choice(names))]
            passage += rng.sample(intent.detail, 2 if value >= 0 else 3)
            passage += rng.sample(DOMAIN_NOTES[name.partition(".")[0]], 2)
            title = intent.title.format(names[0])
            docs[name, value] = {"_id": f"d{len(docs)}", "text": "".join(passage), "title": title}
    return docs


def queries(c: Composer) -> Iterator[Row]:
    """Sentences to search the corpus with, and their meaning."""
    while True:
        m = c.meaning()
        yield {"text": c.say(m), "meaning": m}


def retrieval() -> Iterator[tuple[str, list[Row]]]:
    """Paths and rows of the corpus, the judgements (2: the passage on the meaning, 1: the general one), the queries."""
    docs, query_rows = corpus(), []
    for split, count in zip(SPLITS, (1000, 150, 150), strict=True):
        judged = []
        for i, row in enumerate(take(queries(Composer("retrieval", split)), count)):
            intent, value = row["meaning"]
            query_rows.append({"_id": f"{split}{i}", "text": row["text"]})
            for key, score in ((value, 2), (-1, 1)):
                if (intent, key) in docs:
                    judged.append({"query-id": f"{split}{i}", "corpus-id": docs[intent, key]["_id"], "score": score})
        yield f"qrels/{split}.tsv", judged
    yield "corpus.jsonl.gz", list(docs.values())
    yield "queries.jsonl.gz", query_rows


def compose() -> dict[str, list[Row]]:
    """The rows of all files, by path."""
    files = {
        f"{family}/{NAME}/{split}.jsonl.gz": take(make(Composer(family, split)), count)
        for family, (make, counts) in FAMILIES.items()
        for split, count in zip(SPLITS, counts, strict=False)
    }
    return files | {f"retrieval/{NAME}/{path}": rows for path, rows in retrieval()}


def check(files: dict[str, list[Row]]) -> None:
    """Assert that no text is in two of train, dev, test and the corpus."""
    split_of_text: dict[str, str] = {}
    for path, rows in files.items():
        for row in rows:
            split = Path(path).name.partition(".")[0]
            split = row["_id"].rstrip("0123456789") if split == "queries" else split
            for text in texts_of(row):
                first_split = split_of_text.setdefault(letters(text), split)
                assert first_split == split, f"{text} of {path} is in {first_split}, too"


def pack(path: str, rows: list[Row]) -> bytes:
    """The bytes of a file: a table with a header, or compressed JSON lines without a time stamp."""
    if path.endswith(".tsv"):
        lines = ["\t".join(rows[0])] + ["\t".join(map(str, row.values())) for row in rows]
        return ("\n".join(lines) + "\n").encode()
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows]
    buffer = BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        stream.write("".join(lines).encode())
    return buffer.getvalue()


def main() -> None:
    """Write all files and print a table of them."""
    parser = argparse.ArgumentParser(description="Compose the Chinese sample data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "acge_lightning" / "sample")
    out = parser.parse_args().out
    files = compose()
    check(files)
    total = 0
    print(f"{'file':<46}{'rows':>7}{'bytes':>9}")
    for path, rows in sorted(files.items()):
        data = pack(path, rows)
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(data)
        total += len(data)
        print(f"{path:<46}{len(rows):>7}{len(data):>9}")
    print(f"{'total':<46}{sum(map(len, files.values())):>7}{total:>9}")


if __name__ == "__main__":
    main()

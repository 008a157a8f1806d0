"""Planted false negatives: none that differs from a positive or the query in case, width or punctuation only is mined."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE

from acge_lightning.data.retrieval import RetrievalDataset
from acge_lightning.mining.negatives.judged_texts import combine_judgements
from acge_lightning.mining.negatives.miner import mine
from acge_lightning.mining.negatives.neighbours import LexicalNeighbours
from acge_lightning.mining.negatives.rules import Reason, Rules

DATA = Path(os.environ.get("ACGE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "retrieval"
WIDE = {ord(c): chr(ord(c) + 0xFEE0) for c in map(chr, range(33, 127))}
QUERIES = 150
SETS = [
    pytest.param(SAMPLE / "retrieval" / "sample_zh", id="sample"),
    *(
        pytest.param(
            DATA / name,
            id=name,
            marks=[pytest.mark.heavy, pytest.mark.data, pytest.mark.skipif(not DATA.is_dir(), reason="no data")],
        )
        for name in ("medical_qa", "cmrc2018", "nfcorpus_en")
    ),
]


def variant(text, rng):
    """The same text in another case, width or punctuation."""
    kinds = [
        text.upper() if text.upper().casefold() == text.casefold() else text + "！",
        text.translate(WIDE),
        text.replace("，", ", ").replace("。", ". ") + " ",
        "「" + text + "」",
        text.replace(" ", "  ") + "……",
    ]
    return rng.choice([kind for kind in kinds if kind.strip() != text] or [text + "!"])


def edited(text, rng):
    """The text with 5 to 15 % of its characters replaced, left out or put in."""
    characters = list(text)
    for _ in range(max(1, round(len(text) * rng.uniform(0.05, 0.15)))):
        at = rng.randrange(len(characters))
        new = rng.choice(text)
        characters[at : at + rng.randint(0, 1)] = rng.choice([[], [new]])
        characters = characters or [new]
    return "".join(characters)


@pytest.mark.parametrize("folder", SETS)
def test_planted_false_negatives_are_not_mined(folder, cache):
    rng = random.Random(0)
    split = RetrievalDataset(folder, cache_dir=cache).train
    split = split.select(np.arange(min(QUERIES, len(split))))
    plain = combine_judgements([split])
    positives = [plain.texts[t] for t in dict.fromkeys(plain.positives.texts.tolist())][:600]
    variants = {variant(text, rng): text for text in [*positives, *plain.queries]} | {query: query for query in plain.queries}
    near = {edited(text, rng): text for text in positives if len(text) >= 16}
    planted = [*variants, *near]
    judged = combine_judgements([split], more_texts=planted)
    neighbours = LexicalNeighbours(judged.queries, judged.texts[: judged.candidate_count])
    mined = mine(judged, neighbours, Rules(negatives=10, near=0.8))
    naive = mine(combine_judgements([split], more_texts=planted, keys=list), neighbours, Rules(negatives=10))

    def planted_among(negatives, origin):
        """How many negatives are made of the query itself or of one of its positives."""
        own = [{judged.texts[t] for t in judged.positives.select(np.array([q])).texts} for q in range(len(judged.queries))]
        return sum(
            origin.get(judged.texts[t]) in own[query] | {judged.queries[query]}
            for query, row in enumerate(negatives.texts)
            for t in row[row >= 0]
        )

    removed, origins = int(mined.removed[:, Reason.NEAR_DUPLICATE].sum()), {"variants": variants, "edits": near}
    counted = {name: (planted_among(naive, origin), planted_among(mined, origin)) for name, origin in origins.items()}
    print(f"{folder.name}: planted texts among the negatives without the rules and with them: {counted}; {removed} removed")
    assert counted["variants"][0] > len(judged.queries) / 2
    assert counted["variants"][1] == 0
    assert counted["edits"][1] <= 0.1 * counted["edits"][0]

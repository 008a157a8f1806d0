"""Short runs of an encoder on queries and scored pairs, for tests of negatives that are mined again."""

import json
from copy import deepcopy

import torch
from lightning.pytorch import Callback, Trainer

from acge_lightning.callbacks.progress import Progress
from acge_lightning.data import MixtureDataModule, RetrievalDataModule, STSDataModule
from acge_lightning.data.task import Task
from acge_lightning.encoder.build import static
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.training.embedding_module import EmbeddingModule

NOUNS = "猫狗鸟鱼马牛羊鸡兔鼠龙蛇"
ROWS = [
    {
        "query": f"{NOUNS[i % 12]}{NOUNS[i // 12]}吃什么？",
        "positive": [f"{NOUNS[i % 12]}和{NOUNS[i // 12]}爱吃第{i}种菜。"],
        "quality": 1 + i % 3,
    }
    for i in range(72)
]
SCORED = [{"text1": f"{NOUNS[i % 12]}好", "text2": f"{NOUNS[i % 7]}坏", "score": i % 5} for i in range(24)]
RULES = {"negatives": 2, "range_max": 20, "relative_margin": None, "max_score": 0.98}


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


class Watch(Callback):
    """The step, the batch, the encoder and the negatives in force of each batch."""

    def __init__(self):
        self.seen, self.mined = [], {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert all(module.training for module in pl_module.encoder.modules())
        self.seen.append((trainer.global_step, batch, deepcopy(pl_module.encoder)))
        tasks = trainer.datamodule.tasks.items()
        self.mined[trainer.global_step] = {name: data.mined for name, data in tasks if getattr(data, "mined", None)}


def tokenizer():
    return train_vocabulary([text for row in ROWS for text in (row["query"], *row["positive"])], "bpe", 200)


def runs(folder):
    """A function that trains some steps with callbacks: the module, the trainer and a `Watch`."""
    cache = folder / "cache"
    write(folder / "faq" / "train.jsonl", ROWS)
    write(folder / "sts" / "train.jsonl", SCORED)

    def run(*callbacks, tasks=None, steps=10, workers=0, matryoshka=None, mixture=(), ckpt_path=None, **settings):
        torch.manual_seed(4)
        encoder = static(tokenizer(), dim=12, dropout=0.2, dense=8, prompts={"q": "问：", "d": "答："})
        if tasks is None:
            options = {"batch_size": 12, "holdout": 0.0, "cache_dir": cache}
            own = {"prompts": {"query": "q", "document": "d"}, "weight_column": "quality" if "curriculum" in mixture else None}
            tasks = {"faq": RetrievalDataModule(folder / "faq", **own, **options)}
            tasks["sts"] = STSDataModule(folder / "sts", **options)
        module = EmbeddingModule(encoder, {name: Task(data) for name, data in tasks.items()}, matryoshka)
        watch = Watch()
        settings = {"logger": False, "enable_progress_bar": any(isinstance(c, Progress) for c in callbacks)} | settings
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=[*callbacks, watch],
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **settings,
        )
        data = MixtureDataModule(tasks, num_workers=workers, **dict(mixture))
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return module, trainer, watch

    return run


def beir(folder, documents):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    write(folder / "queries.jsonl", [{"_id": f"q{i}", "text": row["query"]} for i, row in enumerate(ROWS)])
    write(folder / "corpus.jsonl", [{"_id": f"d{i}", "text": text} for i, text in enumerate(documents)])
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(len(ROWS)))]
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n")

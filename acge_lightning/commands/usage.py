"""List the commands: what each does, what may be given without a key, which keys take lists, examples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """A command as the command line and its help show it.

    Args:
        summary: a line of what it does.
        positionals: (name in the usage line, key) of what may be given without its key, in this order. The key of a text ends
            in `!` (taken letter by letter), that of a list in `…` (takes all words that are left).
        required: how many of them must be given.
        lists: keys that take lists, and a single value without brackets.
        examples: lines to type.
    """

    summary: str
    examples: tuple[str, ...]
    positionals: tuple[tuple[str, str], ...] = ()
    required: int = 0
    lists: tuple[str, ...] = ()

    def line(self, name: str) -> str:
        """Write the usage line.

        >>> USAGE["search"].line("search")
        'acge search MODEL SOURCE ["QUERY"] [key=value …]'
        """
        words = [word if i < self.required else f"[{word}]" for i, (word, _) in enumerate(self.positionals)]
        return " ".join(["acge", name, *words, *([] if name == "models" else ["[key=value …]"])])


HELP_FLAGS = ("-h", "--help")
USAGE = {
    "train": Usage(
        "train an encoder on a mixture of tasks, score it and export it",
        (
            "acge train +experiment=quickstart",
            "acge train +experiment=finetune encoder.path=FOLDER task=scored_pairs paths.data=pairs.csv",
            "acge train -m +experiment=quickstart seed=1,2,3",
        ),
    ),
    "evaluate": Usage(
        "score encoders on folders of data sets",
        (
            "acge evaluate outputs/quickstart/TIME data",
            "acge evaluate model=[bm25,outputs/mine/export] tasks=sts dims=64,256",
            "acge evaluate model={before: FOLDER, after: outputs/mine/TIME} paths.data_dir=data out=both.json",
        ),
        (("MODEL", "model"), ("DATA_DIR", "paths.data_dir")),
        1,
        ("tasks", "dims", "exclude_own_id"),
    ),
    "search": Usage(
        "find the texts of files that are nearest to a query",
        (
            'acge search outputs/mine/TIME notes "how do I return this"',
            "acge search outputs/mine/TIME notes index=notes_index",
            'acge search MODEL faq.csv "怎么退货" field=question k=3',
        ),
        (("MODEL", "model"), ("SOURCE", "source"), ('"QUERY"', "query!")),
        2,
    ),
    "clean": Usage(
        "leave leaks, duplicates and contradictions out of training rows",
        (
            "acge clean data out=cleaned",
            "acge clean pairs.csv family=sts evaluation=data out=cleaned",
            "acge clean data tasks=classification steps.labels={share: 0.02} out=cleaned",
        ),
        (("SOURCE", "source"),),
        1,
        ("tasks", "evaluation"),
    ),
    "report": Usage(
        "write one page that compares runs and evaluations",
        (
            "acge report outputs/mine/TIME",
            "acge report outputs/a/TIME outputs/b/TIME results.json out=comparison.html",
            "acge report runs={before: outputs/a/TIME, after: outputs/b/TIME} pictures=pictures",
        ),
        (("FOLDER …", "runs…"),),
        1,
        ("runs",),
    ),
    "longtail": Usage(
        "score few-shot, long-tailed classification at every size of an embedding",
        (
            "acge longtail outputs/mine/TIME tasks=cic_intent paths.data_dir=data",
            "acge longtail model={plain: FOLDER, mrl: outputs/mine/TIME} tasks=cic_intent,tnews paths.data_dir=data",
            "acge longtail outputs/mine/TIME tasks=cic_intent protocol.shots=[1,5] protocol.perturbations=[clean,typos]",
        ),
        (("MODEL", "model"),),
        1,
        ("tasks", "dims"),
    ),
    "mine": Usage(
        "mine hard negatives of queries, as rows to train on",
        (
            "acge mine outputs/mine/TIME data/retrieval/faq out=mined",
            "acge mine MODEL pairs.csv more.jsonl out=mined sampling=random negatives=3 scores=true",
            "acge mine bm25 data/retrieval/faq out=mined scorer=CROSS_ENCODER",
        ),
        (("MODEL", "model"), ("SOURCE …", "source…")),
        2,
        ("source", "corpus"),
    ),
    "fisher": Usage(
        "measure which weights of an encoder the tasks depend on",
        (
            "acge fisher outputs/mine/TIME output=old.anchor.safetensors",
            "acge fisher MODEL task=[stsb_zh,medical_qa] paths.data_dir=data output=old.anchor.safetensors",
            "acge fisher MODEL task=scored_pairs +paths.data=pairs.csv output=mine.anchor.safetensors",
        ),
        (("MODEL", "model"),),
        1,
        ("dims",),
    ),
    "pca": Usage(
        "rotate an encoder to its principal components, so that short prefixes keep most",
        (
            "acge pca outputs/mine/TIME output=rotated",
            "acge pca MODEL task=short_sentences paths.data_dir=data output=rotated",
            "acge pca MODEL task=texts +paths.data=texts.jsonl output=rotated texts=50000",
        ),
        (("MODEL", "model"),),
        1,
    ),
    "vocabulary": Usage(
        "learn a tokenizer's vocabulary from the texts of tasks",
        (
            "acge vocabulary output=vocabulary",
            "acge vocabulary task=short_sentences paths.data_dir=data output=vocabulary vocabulary.vocab_size=20000",
            "acge vocabulary task=texts +paths.data=texts.jsonl output=vocabulary vocabulary.kind=bpe",
        ),
    ),
    "models": Usage("list the encoders that have a name", ("acge models",)),
}

"""Tell which rows the scores of a run come from: only scores of the same rows are compared, and rows seen in training show.

A record is what `result.json` keeps as `data`: `val` or `test` -> task -> `family`, `rows`, `hash` and `seen`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from acge_lightning.evaluation.leak_marks import seen_text

SPLITS = {"val": "dev", "test": "test"}  # first word of a score -> the split that it is of
Entry = Mapping[str, Any]
Record = Mapping[str, Mapping[str, Entry]]


def entries_of(key: str, record: Record) -> dict[str, Entry]:
    """Select the tasks whose rows a score comes from: `val/<task>/<metric>`, `val/<family>`, or all (`val/mean`)."""
    prefix, _, rest = key.partition("/")
    entries = dict(record.get(prefix, {}))
    name, _, metric = rest.partition("/")
    name = name.partition("@")[0]  # `val/mean@64` is of the same rows
    if metric:
        return {name: entries[name]} if name in entries else {}
    of_family = {task: entry for task, entry in entries.items() if entry["family"] == name}
    return of_family or ({name: entries[name]} if name in entries else entries)


def rows_hash(key: str, record: Record) -> str | None:
    """Hash the rows that a score comes from; None if the run has no record of them."""
    entries = entries_of(key, record)
    if not entries:
        return None
    text = " ".join(f"{task} {entries[task]['hash']}" for task in sorted(entries))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def seen_mark(key: str, record: Record) -> str:
    """Write the mark of a score whose rows were partly seen in training: ` †27.3 % seen`; `""` for a clean one.

    >>> rows = {"val": {"a": {"family": "sts", "rows": 1000, "hash": "", "seen": 273}}}
    >>> seen_mark("val/a/spearman", rows), seen_mark("val/mean", rows), seen_mark("test/mean", rows)
    (' †27.3 % seen', ' †27.3 % seen', '')
    """
    entries = entries_of(key, record).values()
    seen = sum(entry["seen"] for entry in entries)
    return f" {seen_text(seen, sum(entry['rows'] for entry in entries))}" if seen else ""

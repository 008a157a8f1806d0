"""What is evaluated: encoders by path or name, and lexical baselines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acge_lightning.encoder.encoder import Encoder
from acge_lightning.errors import InputError
from acge_lightning.evaluation.lexical import LEXICAL
from acge_lightning.evaluation.names import run_names
from acge_lightning.zoo.location import model_folder
from acge_lightning.zoo.pretrained import load


@dataclass(frozen=True)
class Model:
    """An encoder, or a lexical baseline, that is evaluated.

    Args:
        name: in tables.
        path: where it came from, or the name of a lexical baseline.
        encoder: None for a lexical baseline.
        prompts: role (`query`, `document`, `text`) -> name of one of the encoder's prompts.
    """

    name: str
    path: str
    encoder: Encoder | None = None
    prompts: Mapping[str, str] | None = None

    def dims(self, requested: Sequence[int] | None) -> list[int | None]:
        """Return the sizes to score it at, largest first: the requested ones that it has, and its full size."""
        if self.encoder is None:
            return [None]
        chosen = self.encoder.matryoshka_dims if requested is None else requested
        smaller = {dim for dim in chosen if dim < self.encoder.dim}
        return [self.encoder.dim, *sorted(smaller, reverse=True)]

    def require_encoder(self, reason: str = "give encoders only") -> Encoder:
        """Return the encoder.

        Raises:
            InputError: it is a lexical baseline; the reason says why that will not do.
        """
        if self.encoder is None:
            raise InputError(f"model={self.path} is no encoder: {reason}")
        return self.encoder

    def digest(self, encoder: str) -> str:
        """Hash the encoder and the prompts that it is scored with.

        Args:
            encoder: its hash, which is the digest of a model without prompts.

        Raises:
            InputError: a prompt that the encoder does not have.
        """
        available, prompts = self.require_encoder().prompts, sorted((self.prompts or {}).items())
        for role, name in prompts:
            if name not in available:
                raise InputError(f"prompts.{role}={name!r} is unknown: {self.name} has {sorted(available) or 'no prompts'}")
        texts = {role: available[name] for role, name in prompts}
        return hashlib.sha256(f"{encoder} {json.dumps(texts)}".encode()).hexdigest()[:24] if any(texts.values()) else encoder

    def card(self, digest: str) -> dict[str, Any]:
        """Describe it for a file of results: its `digest`, sizes, and from the export what it was trained on."""
        encoder = self.encoder
        dims: dict[str, Any] = {"dim": None, "matryoshka_dims": []}
        if encoder is not None:
            dims = {"dim": encoder.dim, "matryoshka_dims": list(encoder.matryoshka_dims)}
        return {"name": self.name, "path": self.path, "hash": digest, **dims, "trained_on": _trained_on(Path(self.path))}


def _trained_on(folder: Path) -> dict[str, Any] | None:
    """Read data, steps, start and versions of the run that made an export, if it has a record."""
    file = folder / "training.json"
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        config = record.get("config") or {}
        details = {"run": config.get("name"), "seed": config.get("seed"), "encoder": config.get("encoder")}
        details |= {key: record.get(key) for key in ("data", "steps", "versions")}
    except (ValueError, AttributeError) as error:
        return {"damaged": f"{file}: {error}"}
    return {key: value for key, value in details.items() if value is not None} or None


def open_models(
    paths: str | Sequence[str] | Mapping[str, str], device: str | None = None, prompts: Mapping[str, str] | None = None
) -> list[Model]:
    """Load encoders by path or name; `bm25` and `tfidf` are lexical baselines.

    Args:
        paths: one, a list, or name in tables -> path, of a model or of a run; without a name, that of the run or of the folder
            (see `run_names`).
        device: where to put them.
        prompts: as in `Model`.
    """
    paths = [paths] if isinstance(paths, str) else paths
    path_of = dict(paths) if isinstance(paths, Mapping) else {}
    names = [] if isinstance(paths, Mapping) else run_names([Path(path) for path in paths])
    for name, path in zip(names, () if isinstance(paths, Mapping) else paths, strict=True):
        path_of[name if name not in path_of else f"{name}-{len(path_of) + 1}"] = path
    folders = {name: path if path in LEXICAL else _folder(path) for name, path in path_of.items()}
    return [Model(n, path, None if path in LEXICAL else _load(path, device), prompts) for n, path in folders.items()]


def _folder(path: str) -> str:
    """Return the folder of the model if the path is that of a run; other paths and names as they are."""
    folder = Path(path).expanduser()
    model = model_folder(folder)
    return path if model == folder else str(model)


def _load(path: str, device: str | None) -> Encoder:
    try:
        return load(path, device=device)
    except InputError as error:
        if "/" in path or Path(path).exists():
            raise
        raise InputError(f"{error}; baselines without an encoder are {' and '.join(LEXICAL)}") from None

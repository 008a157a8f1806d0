"""The stages of a funnel: what a stage is, which ones fit together, and a first choice of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from acge_lightning.errors import InputError

Store = Literal["fp32", "fp16", "int8", "binary"]
IndexKind = Literal["exact", "flat", "hnsw", "ivf"]


@dataclass(frozen=True)
class Stage:
    """One stage of a funnel: the prefix that it compares, and how many rows it hands on.

    Args:
        dim: leading dimensions, cut and then normalised.
        shortlist: rows handed to the next stage, never fewer than the hits asked for. The last stage gives the hits.
        store: how vectors are kept: `fp32`, `fp16`, `int8` (a scale a row) or `binary` (signs; never in the last stage).
        index: how the first stage finds its rows: `exact` compares all of them; `flat`, `hnsw` and `ivf` are indexes of FAISS.
        effort: `efSearch` of an hnsw, `nprobe` of an ivf: more finds more and takes longer.

    Raises:
        InputError: a value that none of these can be.

    YAML::

        stages:
          - {dim: 64, shortlist: 200, store: int8, index: hnsw}
          - {dim: 1792, store: fp16}
    """

    dim: int
    shortlist: int = 100
    store: Store = "fp16"
    index: IndexKind = "exact"
    effort: int | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)
            if name in ("store", "index"):
                if value not in choices:
                    raise InputError(f"stage {name}={value!r} is unknown: choose from {', '.join(choices)}")
            elif not (value is None and name == "effort") and (type(value) is not int or value < 1):
                raise InputError(f"stage {name}={value!r} must be a whole number of at least 1")
        if self.store == "binary" and self.dim % 8:
            raise InputError(
                f"stage dim={self.dim} cannot be stored as binary: signs are kept by the byte, take a multiple of 8"
            )

    @property
    def label(self) -> str:
        """The stage in a few characters: `64 int8 hnsw/128`."""
        index = "" if self.index == "exact" else f" {self.index}" + (f"/{self.effort}" if self.effort else "")
        return f"{self.dim} {self.store}{index}"


def label(stages: Sequence[Stage]) -> str:
    """A funnel in a line, with the shortlists between the stages.

    >>> label([Stage(64, 200, "int8", "hnsw"), Stage(1792)])
    '64 int8 hnsw →200→ 1792 fp16'
    """
    shortlists = [f" →{stage.shortlist}→ " for stage in stages[:-1]] + [""]
    return "".join(stage.label + after for stage, after in zip(stages, shortlists, strict=True))


def check_stages(stages: Sequence[Stage], dim: int, trained: Collection[int], force: bool) -> tuple[Stage, ...]:
    """Check that stages make a funnel over vectors of `dim` dims that works at the `trained` prefixes.

    Args:
        stages: from the shortest prefix to the longest.
        dim: D, of the vectors.
        trained: the prefix sizes that the encoder was trained for.
        force: also take others.

    Returns:
        The stages.

    Raises:
        InputError: what does not fit, and the remedy.
    """
    dims = [stage.dim for stage in stages]
    if not stages or dims != sorted(set(dims)):
        raise InputError(f"stages have the dims {dims}: each must have more dims than the one before")
    if dims[-1] > dim:
        raise InputError(f"a stage of {dims[-1]} dims does not fit: the vectors have {dim}")
    shortlists = [stage.shortlist for stage in stages[:-1]]
    if shortlists != sorted(shortlists, reverse=True):
        raise InputError(f"stages have the shortlists {shortlists}: none may be longer than the one before")
    if any(stage.index != "exact" or stage.effort for stage in stages[1:]):
        raise InputError("only the first stage has an index or an effort: the others compare all that is handed to them")
    if stages[-1].store == "binary":
        raise InputError("the last stage gives the cosines, and signs have none: store it as fp32, fp16 or int8")
    untrained = sorted(set(dims) - set(trained) - {dim})
    if untrained and not force:
        reason = f"it was trained for {sorted({*trained, dim})}" if trained else "no matryoshka_dims are known of these vectors"
        raise InputError(
            f"the encoder was not trained for prefixes of {untrained} dims ({reason}): take trained dims, train it with "
            "matryoshka={dims: […]}, or use force=true if you have seen that they work"
        )
    return tuple(stages)


def default_stages(dim: int, trained: Collection[int]) -> tuple[Stage, ...]:
    """The shortest trained prefix, one of about four times its size if there is one, and all dims; without training, all dims.

    >>> [stage.dim for stage in default_stages(1792, [1792, 1024, 512, 256, 128, 64])]
    [64, 256, 1792]
    """
    dims = sorted({d for d in trained if d < dim})
    if not dims:
        return (Stage(dim, store="fp32"),)
    middle = [d for d in dims if 3 * dims[0] <= d <= dim // 3][:1]
    return (Stage(dims[0], 256), *(Stage(d, 64) for d in middle), Stage(dim))


def as_stages(settings: Sequence[Mapping[str, Any]] | None) -> tuple[Stage, ...] | None:
    """Make stages of a list of a config; None of None.

    Raises:
        InputError: no list of mappings, a key that a stage has not, or none for its dim.

    >>> as_stages([{"dim": 64, "shortlist": 200, "store": "int8"}, {"dim": 512}])[0].shortlist
    200
    """
    if settings is None:
        return None
    names = [f.name for f in fields(Stage)]
    if not isinstance(settings, Sequence) or not all(isinstance(stage, Mapping) for stage in settings):
        raise InputError(f"stages={settings!r} is no list of stages: write [{{dim: 64, shortlist: 200}}, {{dim: 512}}]")
    for i, stage in enumerate(settings):
        unknown = sorted(set(map(str, stage)) - set(names))
        if unknown or "dim" not in stage:
            problem = f"has {unknown[0]!r}" if unknown else "has no dim"
            raise InputError(f"stages[{i}] {problem}: a stage has {', '.join(names)}")
    return tuple(Stage(**stage) for stage in settings)

"""Rules of hard negatives: which ranks and scores a text may have, and how many of those that are left are taken."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, get_args

import numpy as np

from acge_lightning.errors import InputError

Sampling = Literal["top", "random"]
RankBy = Literal["model", "scorer"]
Reference = Literal["lowest", "mean", "highest"]


class Reason(IntEnum):
    """Why a candidate is no negative; of several reasons the first counts."""

    KEPT = 0
    ABSENT = 1  # there is no candidate
    OWN_TEXT = 2
    KNOWN_POSITIVE = 3
    KEY_VARIANT = 4
    LISTED = 5
    REPEATED = 6
    BELOW_RANGE_MIN = 7
    NEAR_DUPLICATE = 8
    SECOND_SCORER = 9
    MAX_SCORE = 10
    MIN_SCORE = 11
    ABSOLUTE_MARGIN = 12
    RELATIVE_MARGIN = 13

    @property
    def words(self) -> str:
        """As a table says it."""
        return _WORDS[self]


_WORDS = {
    Reason.KEPT: "kept",
    Reason.ABSENT: "absent",
    Reason.OWN_TEXT: "the query's own text",
    Reason.KNOWN_POSITIVE: "known positive",
    Reason.KEY_VARIANT: "variant of the query or a positive",
    Reason.LISTED: "listed as negative already",
    Reason.REPEATED: "variant of a better candidate",
    Reason.BELOW_RANGE_MIN: "rank before range_min",
    Reason.NEAR_DUPLICATE: "near duplicate of a positive",
    Reason.SECOND_SCORER: "second scorer puts it above the positive",
    Reason.MAX_SCORE: "above max_score",
    Reason.MIN_SCORE: "below min_score",
    Reason.ABSOLUTE_MARGIN: "within absolute_margin",
    Reason.RELATIVE_MARGIN: "within relative_margin",
}


@dataclass(frozen=True)
class Rules:
    """What makes a candidate a hard negative.

    Ranks are counted among the candidates that may be negatives at all, from 0: known positives, texts like them and the
    query's own text take no rank.

    Args:
        negatives: most of a query.
        range_min: ranks before it are passed over.
        range_max: ranks from it on are not looked at.
        absolute_margin: a negative's score is at least this much below the positive's.
        relative_margin: and at least this share of the positive's score: .05 is the TopK-PercPos (95 %) of NV-Retriever
            (Moreira et al., arXiv 2407.15831). Of a positive below 0 the share is taken of its magnitude.
        max_score: no negative is above it.
        min_score: no negative is below it.
        near: edit similarity to a positive (of keys, as `text_keys` makes them) from which on a candidate is a near duplicate
            of it, and no negative; None to leave that out.
        reference: which of several positives the margins and the second scorer compare with.
        rank_by: whether `top` takes the best ranks of the model that searches (`model`), so that a second scorer is asked for
            few pairs, or the best scores of the second scorer (`scorer`, as sentence-transformers does).
        denoise: leave out what the second scorer puts above the positive.
        sampling: `top` takes the best, `random` draws.
        seed: of the draws; each depends on the seed, the query's and the candidate's text alone.

    Raises:
        InputError: values that no candidate can fulfil, or unknown words.
    """

    negatives: int = 5
    range_min: int = 0
    range_max: int = 100
    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    near: float | None = None
    reference: Reference = "lowest"
    rank_by: RankBy = "model"
    denoise: bool = True
    sampling: Sampling = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("negatives", 1), ("range_min", 0), ("range_max", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InputError(f"{name}={value!r} must be a whole number of at least {least}")
        if self.negatives > self.range_max - self.range_min:
            ranks = f"ranks {self.range_min} to {self.range_max}"
            raise InputError(f"negatives={self.negatives} is more than {ranks} hold: widen range_max, or take fewer")
        for name, choices in (("reference", Reference), ("sampling", Sampling), ("rank_by", RankBy)):
            words = get_args(choices)
            if getattr(self, name) not in words:
                raise InputError(f"{name}={getattr(self, name)!r} is unknown: choose from {', '.join(words)}")
        self._check_scores()

    def _check_scores(self) -> None:
        for name in ("absolute_margin", "relative_margin", "max_score", "min_score", "near"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value)):
                raise InputError(f"{name}={value!r} must be a number, or null")
        if self.relative_margin is not None and not -1 <= self.relative_margin <= 1:
            raise InputError(f"relative_margin={self.relative_margin} is no share of the positive's score: give .05 for 5 %")
        if self.near is not None and not 0 < self.near <= 1:
            raise InputError(f"near={self.near} is no similarity: give 0.8, for example, or null")
        if None not in (self.min_score, self.max_score) and self.min_score > self.max_score:  # type: ignore[operator]
            raise InputError(f"min_score={self.min_score} is above max_score={self.max_score}: no score is between them")

    def by_score(self, scores: np.ndarray, reference: np.ndarray, is_second: bool) -> np.ndarray:
        """Judge candidates by their scores.

        Args:
            scores: Float32[m] of candidates.
            reference: Float32[m] scores of the positive that each is compared with.
            is_second: whether the scores are those of a second scorer.

        Returns:
            Int8[m] numbers of `Reason`.
        """
        reason = np.zeros(len(scores), dtype=np.int8)

        def leave_out(which: np.ndarray, why: Reason) -> None:
            reason[which & (reason == Reason.KEPT)] = why

        if is_second and self.denoise:
            leave_out(scores > reference, Reason.SECOND_SCORER)
        if self.max_score is not None:
            leave_out(scores > np.float32(self.max_score), Reason.MAX_SCORE)
        if self.min_score is not None:
            leave_out(scores < np.float32(self.min_score), Reason.MIN_SCORE)
        if self.absolute_margin is not None:
            leave_out(scores + np.float32(self.absolute_margin) > reference, Reason.ABSOLUTE_MARGIN)
        if self.relative_margin is not None:
            leave_out(scores > reference - np.abs(reference) * np.float32(self.relative_margin), Reason.RELATIVE_MARGIN)
        return reason

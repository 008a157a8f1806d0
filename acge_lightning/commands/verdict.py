"""Say in plain words what a run has come to, where its scores or losses give reason to: it got worse, or did not move."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

_SAME = 5e-4  # of two scores: what chance makes of them
_MOVED = 0.01  # share of its beginning by which a loss must have fallen, and by more than its noise
_FEW_ROWS = 2000
_NAMED = 3  # tasks in a sentence


def verdict(
    before: Mapping[str, float],
    after: Mapping[str, float],
    losses: Mapping[str, tuple[float, float, float]],
    rows: int,
    learning_rate: float | None,
    suited: float | None = None,
) -> list[str]:
    """Compare what a run began and ended with.

    Args:
        before: scores before training; empty if there are none.
        after: scores of the exported weights.
        losses: task -> mean training loss at the beginning and at the end, and the standard error of their difference, as of
            `LossHistory.ends`.
        rows: training rows.
        learning_rate: of the run, if it has one.
        suited: the learning rate that suits its kind of encoder.

    Returns:
        A sentence for each thing that is wrong, with what to try; empty for a run that went well.

    >>> verdict({"val/mean": 0.9099}, {"val/mean": 0.9075}, {}, 480, 2e-5)[0].partition(": ")[0]
    'The model got worse'
    """
    sentences = []
    old, new = before.get("val/mean"), after.get("val/mean", math.nan)
    if old is not None and new < old - _SAME:
        split = f", test/mean {_change(before, after, 'test/mean')}" if "test/mean" in before and "test/mean" in after else ""
        remedies = [_rate("a lower learning rate", learning_rate, min, 0.25, suited)]
        remedies += [f"more rows than these {rows}"] if rows < _FEW_ROWS else []
        remedies += ["checking the labels", "another loss (+loss@task.NAME.loss=cosent)"]
        sentences.append(
            f"The model got worse: val/mean {_change(before, after, 'val/mean')}{split}. "
            f"Keep the one before training, or try: {'; '.join(remedies)}"
        )
    elif old is not None and abs(new - old) <= _SAME:
        remedies = [_rate("a higher learning rate", learning_rate, max, 4, suited), "more epochs (trainer.max_epochs=5)"]
        sentences.append(
            f"Training changed hardly anything: val/mean {_change(before, after, 'val/mean')}. Try: {'; '.join(remedies)}"
        )
    still = [
        f"{task} {first:.3g} → {last:.3g}"
        for task, (first, last, error) in losses.items()
        if first - last <= max(_MOVED * abs(first), 2 * error)
    ]
    if still:
        shown = ", ".join(still[:_NAMED]) + (f" and {len(still) - _NAMED} more" if len(still) > _NAMED else "")
        remedies = [_rate("a higher learning rate", learning_rate, max, 4, suited), "more epochs", "checking the labels"]
        sentences.append(
            f"The training loss did not fall (mean of the first fifth of the steps → of the last): {shown}. "
            f"Try: {'; '.join(remedies)}"
        )
    return sentences


def _change(before: Mapping[str, float], after: Mapping[str, float], key: str) -> str:
    return f"{before[key]:.4f} → {after[key]:.4f} ({after[key] - before[key]:+.4f})"


def _rate(words: str, learning_rate: float | None, choose: Callable[..., float], factor: float, suited: float | None) -> str:
    """Add which learning rate to try: a part or a multiple of this one, or the one that suits if that is further away."""
    if not learning_rate:
        return words
    other = choose(learning_rate * factor, suited or learning_rate * factor)
    return f"{words} (optim.optimizer.lr={other:.1e}, not {learning_rate:.1e})"

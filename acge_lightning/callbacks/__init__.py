"""Callbacks: each hooks one thing into the training loop."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.callbacks.evaluation import Evaluation as Evaluation
    from acge_lightning.callbacks.ewc import EWCAnchor as EWCAnchor
    from acge_lightning.callbacks.finite_guard import Guard as Guard
    from acge_lightning.callbacks.matryoshka import MatryoshkaSchedule as MatryoshkaSchedule
    from acge_lightning.callbacks.peers import Peers as Peers
    from acge_lightning.callbacks.progress import Progress as Progress
    from acge_lightning.callbacks.randomness import StepRandomness as StepRandomness
    from acge_lightning.callbacks.refresh_negatives import RefreshNegatives as RefreshNegatives
    from acge_lightning.callbacks.save_on_signal import Signals as Signals
    from acge_lightning.callbacks.steps import StepCheckpoint as StepCheckpoint

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    evaluation="Evaluation",
    ewc="EWCAnchor",
    finite_guard="Guard",
    matryoshka="MatryoshkaSchedule",
    peers="Peers",
    progress="Progress",
    randomness="StepRandomness",
    refresh_negatives="RefreshNegatives",
    save_on_signal="Signals",
    steps="StepCheckpoint",
)

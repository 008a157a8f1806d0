"""Print one table over all jobs of a multirun at its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from acge_lightning.files.atomic import draft, write_error
from acge_lightning.report.tables import summarise
from acge_lightning.terminal import show


class Summary(Callback):
    """Hydra callback: prints one table over all jobs of a multirun, and writes `summary.csv` beside them."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check, before Hydra writes the first file of a run, that its folder can be written to."""
        folder = Path(config.hydra.run.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with draft(folder / "run") as file:
                file.write_bytes(bytes(1 << 14))  # as much as the config takes
        except OSError as error:
            sys.exit(f"\nerror: hydra.run.dir: {write_error(folder, error)}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print and write the table after the last job."""
        folder = Path(config.hydra.sweep.dir)
        table, failed = summarise(folder)
        show(table, f"The summary is in {folder / 'summary.csv'}")
        if failed:
            sys.exit(f"error: {failed} of the jobs failed")

"""Print tables over all jobs of a multirun at its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from acge_lightning.files.atomic import draft, write_error
from acge_lightning.terminal import show


class Summary(Callback):
    """Hydra callback: prints a table over all jobs of a multirun, and one over seeds, and writes `summary.csv` beside them."""

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
        """Print and write the tables after the last job."""
        from acge_lightning.report.tables import summarise  # it loads torch, and Hydra makes this object for every command line

        folder = Path(config.hydra.sweep.dir)
        tables, failed = summarise(folder)
        show(*tables, f"The summary is in {folder / 'summary.csv'}")
        if failed:
            sys.exit(f"error: {failed} of the jobs failed")

"""Workbooks to rows, through python-calamine in a process of its own, which ends alone if the file is hostile."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from acge_lightning.data.table import Values
from acge_lightning.errors import InputError

_LOG = logging.getLogger(__name__)
PROGRAM = Path(__file__).with_name("excel_sheet.py")


def excel_values(file: Path) -> Iterator[Values]:
    """(number as Excel shows it, values as text) of each row of the first sheet that is not empty; a warning names the others.

    Raises:
        InputError: no workbook, or a damaged or hostile one; python-calamine is not installed.
    """
    if find_spec("python_calamine") is None:
        raise InputError(f"{file}: Excel files need python-calamine: pip install 'acge-lightning[excel]', or save it as csv")
    file.open("rb").close()  # raises what is wrong with it
    # -P: the folder of the program is none of Python's, where its neighbours could hide modules of the library
    command = [sys.executable, "-P", str(PROGRAM), str(file.absolute())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        sheets = _next(process.stdout, file)
        if len(sheets) > 1:
            message = "%s: the sheet %s is read, and not %s: save another as a file of its own to use it"
            _LOG.warning(message, file, sheets[0], ", ".join(sheets[1:]))
        while (row := _next(process.stdout, file)) is not None:
            yield row[0], row[1]
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def _next(lines: IO[bytes], file: Path) -> Any:
    line = lines.readline()
    value = json.loads(line) if line.endswith(b"\n") else "its reader gave up: it is damaged, or too large"
    if isinstance(value, str):
        reason = " ".join(value.split())
        raise InputError(f"{file}: cannot be read as a workbook ({reason:.200}): save it again, or as csv")
    return value

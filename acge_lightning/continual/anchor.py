"""Anchors: an encoder's weights and the importance of each of them, in one file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from acge_lightning.errors import InputError
from acge_lightning.files.atomic import whole

FORMAT = "acge_lightning.continual.anchor/1"


@dataclass(frozen=True)
class Anchor:
    """The weights theta* of an encoder, their importance and their provenance.

    Args:
        theta: parameter name of the `Encoder` -> Float32 (or Float64), its value; never rounded to less than fp32, whose
            rounding in bf16 is as large as what a fine-tuning changes.
        fisher: the same names and shapes -> its importance, 0 or above; fp32, or bf16 to halve its memory.
        meta: where they come from, as plain data: encoder's hash, estimator, dims, and of each task data, loss, temperature,
            pool and number of samples.

    The file is safetensors, and nothing in it is unpickled: `theta/<name>`, and `fisher/<name>` either whole, or, where fewer
    than half of the rows are above 0 (a token embedding's), those rows only, with their numbers in `rows/<name>`. A bf16
    fisher is divided by a power of two (`scales` in the metadata), so the scale costs no accuracy.

    >>> anchor = Anchor({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 0.0])}, {})
    >>> anchor.check({"w": torch.zeros(2), "head": torch.zeros(3)})  # what is new is left free
    ['head']
    """

    theta: dict[str, Tensor]
    fisher: dict[str, Tensor]
    meta: dict[str, Any]

    def check(self, parameters: Mapping[str, Tensor]) -> list[str]:
        """Compare the anchor with an encoder; returns the names of the parameters that it lacks and so leaves free.

        Raises:
            InputError: a parameter of the anchor is not among them or has another shape; the message names the first such.
        """
        for name, star in self.theta.items():
            if name not in parameters:
                raise InputError(f"the anchor holds {name} {tuple(star.shape)}, which this encoder lacks: {_REMEDY}")
            if parameters[name].shape != star.shape:
                shapes = tuple(star.shape), tuple(parameters[name].shape)
                raise InputError(f"{name} is {shapes[0]} in the anchor and {shapes[1]} in this encoder: {_REMEDY}")
        return [name for name in parameters if name not in self.theta]

    def save(self, file: str | Path, bf16: bool = False) -> Path:
        """Write the file, whole or not at all.

        Args:
            file: its path; folders are made.
            bf16: round the fisher, not theta*, to 8 significant bits.
        """
        file = Path(file)
        tensors: dict[str, Tensor] = {f"theta/{name}": _plain(values) for name, values in self.theta.items()}
        scales: dict[str, float] = {}
        for name, values in self.fisher.items():
            values = values.detach().cpu()
            rows = values.flatten(1).any(1).nonzero().flatten() if values.dim() > 1 else None
            if rows is not None and 2 * len(rows) < len(values):
                tensors[f"rows/{name}"], values = rows, values[rows]
            if bf16:
                largest = float(values.max()) if values.numel() else 0.0
                scales[name] = 2.0 ** math.floor(math.log2(largest)) if 0 < largest < math.inf else 1.0
                values = (values / scales[name]).to(torch.bfloat16)
            tensors[f"fisher/{name}"] = _plain(values)
        header = {"format": FORMAT, "meta": self.meta, "scales": scales}
        with whole(file) as draft:
            save_file(tensors, draft, {"acge": json.dumps(header, ensure_ascii=False)})
        return file

    @classmethod
    def load(cls, file: str | Path, mmap: bool = True) -> Anchor:
        """Read the file.

        Args:
            file: its path.
            mmap: leave theta*, and a whole fp32 fisher, on the disk until they are used, shared between processes; else all in
                memory.

        Raises:
            InputError: no such file, or not an anchor: weights that are not finite, importances that are not, or below 0.
        """
        try:
            # two maps of the file: that of the fisher is let go where its rows are copied into whole tensors
            with safe_open(file, "pt") as opened, safe_open(file, "pt") as second:
                header = json.loads((opened.metadata() or {}).get("acge", "{}"))
                keys = opened.keys()
                tensors = {key: (opened if key.startswith("theta/") else second).get_tensor(key) for key in keys}
        except FileNotFoundError:
            raise InputError(f"{file}: there is no such file: make it with `acge fisher`") from None
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise InputError(f"{file} cannot be read ({error}): make it again with `acge fisher`") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise InputError(f"{file} is no anchor of this version ({FORMAT}): make it with `acge fisher`")
        theta = {key.removeprefix("theta/"): values for key, values in tensors.items() if key.startswith("theta/")}
        try:
            fisher = dict(_whole_importances(theta, tensors, header))
            _check_values(theta, fisher)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{file}: its parts do not fit together ({reason}): make it again with `acge fisher`") from error
        if not mmap:
            theta, fisher = ({name: values.clone() for name, values in by_name.items()} for by_name in (theta, fisher))
        return cls(theta, fisher, header["meta"])


_REMEDY = "take the anchor of the encoder that this one was made from"


def _whole_importances(
    theta: Mapping[str, Tensor], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """The importance of each parameter, all rows, scale undone; a ValueError or one like it if it is not of theta's shape."""
    scales = header["scales"]
    if not isinstance(scales, dict) or not isinstance(header["meta"], dict) or not theta:
        raise ValueError("its header has another form, or it holds no weights")
    strangers = tensors.keys() - {f"{kind}/{name}" for kind in ("theta", "fisher", "rows") for name in theta}
    if strangers:
        raise ValueError(f"{min(strangers)} belongs to no weights")
    for name, star in theta.items():
        values = tensors[f"fisher/{name}"]
        if name in scales:
            values = values * float(scales[name])
        if f"rows/{name}" in tensors:
            rows = tensors[f"rows/{name}"]
            if (
                rows.dtype != torch.int64
                or rows.dim() != 1
                or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(star))
            ):
                raise ValueError(f"rows/{name} are no rows of {tuple(star.shape)}")
            values = torch.zeros(star.shape, dtype=values.dtype).index_copy_(0, rows, values)
        if values.shape != star.shape:
            raise ValueError(f"{name}: {tuple(values.shape)} and {tuple(star.shape)}")
        yield name, values


def _check_values(theta: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless weights are finite, of fp32 or fp64, and importances finite and 0 or above."""
    wide = (torch.float32, torch.float64)
    for kind, tensors, dtypes in (("theta", theta, wide), ("fisher", fisher, (*wide, torch.bfloat16))):
        for name, values in tensors.items():
            if values.dtype not in dtypes:
                raise ValueError(f"{kind}/{name} is of {values.dtype}")
            low, high = map(float, values.aminmax()) if values.numel() else (0.0, 0.0)  # NaN if one is
            if not math.isfinite(low) or not math.isfinite(high):
                raise ValueError(f"{kind}/{name} holds a number that is NaN or infinite")
            if kind == "fisher" and low < 0:
                raise ValueError(f"{kind}/{name} holds {low:g}, and importances are 0 or above")


def _plain(values: Tensor) -> Tensor:
    """A copy on the CPU, contiguous and without gradient."""
    return values.detach().to("cpu", copy=True).contiguous()

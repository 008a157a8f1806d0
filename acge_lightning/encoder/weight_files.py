"""Reads the weights of a model folder: safetensors, or torch's own files where there are none; tensors and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from acge_lightning.encoder.model_settings import is_within, one_line, read_settings, setting
from acge_lightning.errors import InputError

FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read; with `.index.json`, the shards it names
_SUFFIXES = (".safetensors", ".bin")


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder; floating-point ones as float32.

    `pytorch_model.bin` is unpickled by torch with `weights_only=True`, which makes tensors and plain containers and calls
    nothing else; any other content is an error.

    Args:
        folder: with one of `FILES`, or an index of its shards.

    Raises:
        InputError: no weights there, damaged or quantised ones, an index that names files elsewhere, a pickle of more.
    """
    weights: dict[str, torch.Tensor] = {}
    for file in _weight_files(folder):
        read = _safetensors if file.suffix == ".safetensors" else _torch_file
        try:
            for name, value in read(file):
                weights[name] = _as_float32(value, f"{file}: {name}")
        except SafetensorError as error:
            raise InputError(f"{file} is damaged ({one_line(error)}): copy or download it again") from error
        except (OSError, RuntimeError, MemoryError) as error:
            raise InputError(f"{file} cannot be read ({one_line(error)}): copy or download it again") from error
    return weights


def _safetensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (it is no mapping)
            yield name, opened.get_tensor(name)


def _torch_file(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged or hostile pickle leads to
        raise InputError(
            f"{file} holds more than tensors, or is damaged ({one_line(error):.160}): it is not read; where you trust it, load "
            "it once with transformers, and save_pretrained writes model.safetensors"
        ) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise InputError(f"{file} is no table of names and tensors: it is not the weights of a model")
    yield from content.items()


def _as_float32(value: torch.Tensor, name: str) -> torch.Tensor:
    """A floating-point tensor as float32, in the file's own memory where it is float32; an error for quantised weights."""
    if value.is_floating_point():
        return value.to(torch.float32)
    if name.endswith(("weight", "bias", "embeddings")):
        raise InputError(f"{name} is {str(value.dtype).removeprefix('torch.')}: quantised weights are not supported")
    return value


def _weight_files(folder: Path) -> list[Path]:
    """The folder's files of weights, or an error that says what is there instead."""
    for name, suffix in zip(FILES, _SUFFIXES, strict=True):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        settings = read_settings(index)
        if settings is not None:
            return _shards(folder, index, setting(index, settings, "weight_map", dict, {}), suffix)
    others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.safetensors") for file in folder.glob(pattern))
    raise InputError(f"{folder}: {f'only {others[0]}' if others else 'no weights'} there, none of {', '.join(FILES)}")


def _shards(folder: Path, index: Path, file_of: Mapping[str, object], suffix: str) -> list[Path]:
    """The files that an index names, within the folder and all there."""
    if not file_of:
        raise InputError(f"{index}: weight_map names no files: copy it again")
    for name in file_of.values():
        if not isinstance(name, str) or not name.endswith(suffix) or not is_within(name):
            raise InputError(f"{index} names {name!r:.80}: it may only name *{suffix} files within the folder")
        if not (folder / name).is_file():
            raise InputError(f"{index} names {name!r:.80}, which is not there: copy or download the folder again")
    return [folder / name for name in sorted({str(name) for name in file_of.values()})]

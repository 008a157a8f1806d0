"""Where Hydra finds YAML files: those of the package, and folders of one's own, whose files may set less.

Hydra calls what its own node names (callbacks, launcher, sweeper, logging), and `trusted` says which packages a `_target_` may
name. Both count from the command line and from the package's YAMLs. A file of another folder that sets them is refused when it
is read, whichever way it takes: a key of its body, a `# @package`, a `@package` or an `override` of a defaults list, its place.
"""

from __future__ import annotations

import io
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from acge_lightning.config.overrides import quote
from acge_lightning.errors import InputError
from acge_lightning.files.yaml_file import LARGEST, checked_text, explodes

_RESERVED = ("hydra", "trusted")
_PLAIN = ("run.dir", "sweep.dir", "sweep.subdir", "mode", "sweeper.max_batch_size")  # of hydra: what a file may set
_AS_OURS = {"output_subdir": None, "callbacks.summary._target_": "acge_lightning.commands.summary.Summary"}  # copies of ours
_DEFAULTS_AS_OURS = [{f"override hydra/{name}": "none"} for name in ("job_logging", "hydra_logging")]
_PARAMETER = re.compile(r"\+{0,2}(?!(hydra|trusted)\b)[\w./-]+")
_NAME = re.compile(r"(?!.*_(global|group|here|name)_)(?!(hydra|trusted)\Z)[\w-]+")  # of a folder, or a part of a package
_FILE = re.compile(r"(?!\.{1,2}\Z)[\w.-]+|\?\?\?")
_CHOICE = re.compile(r"\$\{[\w./@-]+\}")  # another group's, in a defaults list


def config_dir() -> Path:
    """The folder of YAML files: in the package once installed, beside it in a checkout.

    Raises:
        InputError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise InputError(f"{package} holds no conf/train.yaml, nor does the folder above: install acge-lightning again")


def read_flags(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take the flags that say where configs lie, and lead all their files through `Checked`.

    Args:
        given: the arguments that were typed.

    Returns:
        These flags, for a command that composes the same config again, and what Hydra is to be given.

    Raises:
        InputError: a folder that is not there, and the flag that would read a pickle.
    """
    parser = ArgumentParser(add_help=False)
    for name, short in (("config-dir", "cd"), ("config-name", "cn"), ("config-path", "cp"), ("cfg", "c")):
        parser.add_argument(f"--{name}", f"-{short}", dest=name)
    parser.add_argument("--experimental-rerun", dest="rerun")
    parsed, rest = parser.parse_known_args(given)
    flags = {name: value for name, value in vars(parsed).items() if value is not None}
    if "rerun" in flags:
        raise InputError("--experimental-rerun reads a pickle, which can run code: type the overrides of the run again")
    name = Path(flags.get("config-name", ""))
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"--config-name={name} is a path: name its folder with --config-dir, and the config by its name")
    CheckedPath.own = [_address(flags["config-dir"])] if "config-dir" in flags else []
    for plugin in (Checked, CheckedPath):
        Plugins.instance().register(plugin)
    words = [f"--{flag}={value}" for flag, value in flags.items()]
    hydras = [word for word in words if not word.startswith("--config-dir=")]
    return [word for word in words if not word.startswith("--cfg=")], [*hydras, *map(_searchpath, rest)]


def _searchpath(argument: str) -> str:
    """`hydra.searchpath=[…]` with its folders led through `Checked`; any other argument as it is."""
    if not argument.startswith("hydra.searchpath="):
        return argument
    folders = OverridesParser.create().parse_override(argument).value()
    if not isinstance(folders, list):
        return argument
    return f"hydra.searchpath=[{','.join(quote(_address(str(folder))) for folder in folders)}]"


def _address(folder: str) -> str:
    """A folder as Hydra's search path has it; what is no folder, such as `pkg://…`, as it is."""
    scheme, _, path = folder.rpartition("://")
    if scheme not in ("", "file"):
        return folder
    if not os.path.isdir(path):
        raise InputError(f"config folder {path} is not there: check --config-dir, --config-path or hydra.searchpath")
    return f"{Checked.scheme()}://{os.path.abspath(path)}"


class CheckedPath(SearchPathPlugin):
    """Leads the main folder of configs, the package's or that of `--config-path`, through `Checked`, and adds one's own."""

    own: ClassVar[list[str]] = []  # addresses of folders

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Before Hydra reads anything."""
        for element in search_path.get_path():
            if element.provider == "main":
                element.path = _address(element.path)
        for address in self.own:
            search_path.append("command-line", address)


class Checked(ConfigSource):
    """A folder of YAML files. Only its own files are read, and those of other folders than the package's are checked."""

    @staticmethod
    def scheme() -> str:
        """Of its addresses."""
        return "checked"

    def load_config(self, config_path: str) -> ConfigResult:
        """The config of a file; the program ends with one line where it is refused."""
        file = self._file(config_path)
        if not file.is_file():
            raise ConfigLoadError(f"Config not found : {file}")
        try:
            ours = Path(self.path) == config_dir()
            text = file.read_text(encoding="utf-8") if ours else checked_text(file)
            header, config = self._get_header_dict(text[:512]), OmegaConf.load(io.StringIO(text))
            if not ours:
                for error in _wrongs(config_path, header["package"], config):
                    raise InputError(f"{file}: {error}")
        except (InputError, yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
            message = str(error) if isinstance(error, InputError) else f"{file}: {' '.join(str(error).split())}"
            sys.exit(f"\nerror: {message}")
        return ConfigResult(provider=self.provider, path=self.full_path(), config=config, header=header)

    def _file(self, config_path: str) -> Path:
        if config_path.startswith("/") or ".." in config_path.split("/"):
            sys.exit(f"\nerror: config {config_path} is outside of {self.path}: name its folder with --config-dir")
        return Path(self.path, self._normalize_file_name(config_path))

    def available(self) -> bool:
        """Whether the folder is there."""
        return self.is_group("")

    def is_group(self, config_path: str) -> bool:
        """Whether it is a folder of configs."""
        return Path(self.path, config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Whether it is a config."""
        return self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names of the configs, of the folders, or of both."""
        found: list[str] = []
        for name in sorted(os.listdir(Path(self.path, config_path))):
            self._list_add_result(found, os.path.join(config_path, name), name, results_filter)
        return sorted(set(found))


# ---- what a file of one's own may not set


def _wrongs(config_path: str, package: str | None, config: Any) -> Iterator[str]:
    """What is wrong with a file, and the remedy."""
    yield from _wrong_path(config_path)
    yield from _wrong_package(package or "")
    body = OmegaConf.to_container(config, resolve=False)
    if not isinstance(body, dict):
        return
    if explodes(body):
        yield f"refused, for its interpolations, written out, make more than {LARGEST:,} characters"
    for entry in [entry for entry in body.get("defaults") or [] if entry not in _DEFAULTS_AS_OURS]:
        yield from _wrong_default(entry)
    if body.get("trusted"):
        yield "trusted counts from the command line only: take it out, and give trusted=[…] there if you trust it"
    if "hydra" in body:
        for key, value in _leaves(body["hydra"]):
            named = key in _PLAIN or (key.startswith("sweeper.params.") and _PARAMETER.fullmatch(key, len("sweeper.params.")))
            if (not named or isinstance(value, (dict, list))) and (key, value) not in _AS_OURS.items():
                where = f"hydra.{key}".rstrip(".")
                yield f"{where} counts from the command line only: take it out, and give it there if you trust it"


def _leaves(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{where}.{key}" if where else str(key))
    else:
        yield where, node


def _wrong_path(path: str) -> Iterator[str]:
    """Folders that Hydra would make a package of, and ways out of the folder."""
    *folders, name = path.removeprefix("/").split("/")
    if not all(_NAME.fullmatch(part) for part in folders) or not _FILE.fullmatch(name):
        yield f"config {path} is refused: hydra/… counts from the command line only; else write letters, digits, _ and -"


def _wrong_package(package: str) -> Iterator[str]:
    first, _, rest = package.partition(".")
    parts = (rest if first in ("_global_", "_group_", "_here_") else package).split(".")
    if parts != [""] and not all(_NAME.fullmatch(part) for part in parts):
        yield f"package {package} is refused: hydra and trusted count from the command line only"


def _wrong_default(entry: Any) -> Iterator[str]:
    """An entry of a defaults list: `path[@package]`, or `[override] [optional] group[@package]: name, names or null`."""
    for key, value in entry.items() if isinstance(entry, dict) else [(entry, None)]:
        *words, place = str(key).split(" ")
        path, _, package = place.partition("@")
        yield from _wrong_path(f"{path}/_" if isinstance(entry, dict) else path)
        yield from _wrong_package(package)
        if set(words) - {"override", "optional"}:
            yield f"{key!r} in its defaults list is refused: write group, group@package, override or optional before them"
        for name in value if isinstance(value, list) else [] if value is None else [value]:
            yield from _wrong_path(_CHOICE.sub("x", str(name)))

"""Let Hydra find YAML files: those of the package, and folders of the user's, whose files may set less.

Hydra calls what its own node names (callbacks, launcher, sweeper, logging), and `trusted` says which packages a `_target_` may
name. Both count from the command line and from the package's YAMLs. A file of another folder that sets them in any way is
refused when it is read: a key of its body, a `# @package`, a `@package` or an `override` of a defaults list, its path.
"""

from __future__ import annotations

import io
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
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

from acge_lightning.config.folder import config_dir
from acge_lightning.config.overrides import quote
from acge_lightning.errors import InputError
from acge_lightning.files.yaml_file import LARGEST, checked_text, explodes

_ALLOWED_HYDRA_KEYS = (
    "run.dir",
    "sweep.dir",
    "sweep.subdir",
    "mode",
    "sweeper.max_batch_size",
)  # of hydra: keys that a file may set
_AS_OURS = {"output_subdir": None, "callbacks.summary._target_": "acge_lightning.commands.summary.Summary"}  # as in our files
_DEFAULTS_AS_OURS = [{f"override hydra/{name}": "none"} for name in ("job_logging", "hydra_logging")]
_PARAMETER = re.compile(r"\+{0,2}(?!(hydra|trusted)\b)[\w./-]+")
_NAME = re.compile(r"(?!.*_(global|group|here|name)_)(?!(hydra|trusted)\Z)[\w-]+")  # of a folder, or a part of a package
_FILE = re.compile(r"(?!\.{1,2}\Z)[\w.-]+|\?\?\?")
_CHOICE = re.compile(r"\$\{[\w./@-]+\}")  # another group's, in a defaults list


def read_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parse the flags that name folders and files of configs, and have all their files read through `CheckedSource`.

    Args:
        arguments: the arguments that were typed.

    Returns:
        These flags, for a command that composes the same config again, and the arguments for Hydra.

    Raises:
        InputError: a folder that does not exist, or the flag that would read a pickle.
    """
    parser = ArgumentParser(add_help=False)
    for name, short in (("config-dir", "cd"), ("config-name", "cn"), ("config-path", "cp"), ("cfg", "c")):
        parser.add_argument(f"--{name}", f"-{short}", dest=name)
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", nargs="?", const="all")
    parser.add_argument("--experimental-rerun", dest="rerun")
    parsed, rest = parser.parse_known_args(arguments)
    flags = {name: value for name, value in vars(parsed).items() if value is not None}
    if "rerun" in flags:
        raise InputError("--experimental-rerun reads a pickle, which can run code: type the overrides of the run again")
    config_name = Path(flags.get("config-name", ""))
    if config_name.is_absolute() or ".." in config_name.parts:
        raise InputError(
            f"--config-name={config_name} is a path: name its folder with --config-dir, and the config by its name"
        )
    CheckedPath.user_folders = [_address(flags["config-dir"])] if "config-dir" in flags else []
    for plugin in (CheckedSource, CheckedPath):
        Plugins.instance().register(plugin)
    flag_arguments = [f"--{flag}={value}" for flag, value in flags.items()]
    hydra_arguments = [word for word in flag_arguments if not word.startswith("--config-dir=")]
    return [word for word in flag_arguments if not word.startswith("--cfg=")], [*hydra_arguments, *map(_searchpath, rest)]


def _searchpath(argument: str) -> str:
    """Have the folders of `hydra.searchpath=[…]` read through `CheckedSource`; return any other argument as it is."""
    if not argument.startswith("hydra.searchpath="):
        return argument
    folders = OverridesParser.create().parse_override(argument).value()
    if not isinstance(folders, list):
        return argument
    return f"hydra.searchpath=[{','.join(quote(_address(str(folder))) for folder in folders)}]"


def _address(folder: str) -> str:
    """Return the address of a folder for Hydra's search path; other addresses, such as `pkg://…`, stay as they are."""
    scheme, _, path = folder.rpartition("://")
    if scheme not in ("", "file"):
        return folder
    if not os.path.isdir(path):
        raise InputError(f"config folder {path} is not there: check --config-dir, --config-path or hydra.searchpath")
    return f"{CheckedSource.scheme()}://{os.path.abspath(path)}"


class CheckedPath(SearchPathPlugin):
    """Has the main folder of configs, the package's or that of `--config-path`, read through `CheckedSource`; adds others."""

    user_folders: ClassVar[list[str]] = []  # addresses of folders

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Change the search path before Hydra reads anything."""
        for element in search_path.get_path():
            if element.provider == "main":
                element.path = _address(element.path)
        for address in self.user_folders:
            search_path.append("command-line", address)


class CheckedSource(ConfigSource):
    """Reads a folder of YAML files, and no files outside of it; files of other folders than the package's are checked."""

    @staticmethod
    def scheme() -> str:
        """Return the scheme of its addresses."""
        return "checked"

    def load_config(self, config_path: str) -> ConfigResult:
        """Read the config of a file; the program ends with one line if it is refused."""
        file = self._file(config_path)
        if not file.is_file():
            raise ConfigLoadError(f"Config not found : {file}")
        try:
            ours = Path(self.path) == config_dir()
            text = file.read_text(encoding="utf-8") if ours else checked_text(file)
            header, config = self._get_header_dict(text[:512]), OmegaConf.load(io.StringIO(text))
            if not ours:
                for error in _file_errors(config_path, header["package"], config):
                    raise InputError(f"{file}: {error}")
        except (InputError, yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
            message = str(error) if isinstance(error, InputError) else f"{file}: {' '.join(str(error).split())}"
            sys.exit(f"\nerror: {message}")
        return ConfigResult(provider=self.provider, path=self.full_path(), config=config, header=header)

    def _file(self, config_path: str) -> Path:
        if config_path.startswith(("/", "\\")) or PureWindowsPath(config_path).drive or ".." in re.split(r"[/\\]", config_path):
            sys.exit(f"\nerror: config {config_path} is outside of {self.path}: name its folder with --config-dir")
        return Path(self.path, self._normalize_file_name(config_path))

    def available(self) -> bool:
        """Tell whether the folder exists."""
        return self.is_group("")

    def is_group(self, config_path: str) -> bool:
        """Tell whether a path is a folder of configs."""
        return Path(self.path, config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Tell whether a path is a config."""
        return self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List the names of the configs, of the folders, or of both."""
        names: list[str] = []
        for name in sorted(os.listdir(Path(self.path, config_path))):
            self._list_add_result(names, os.path.join(config_path, name), name, results_filter)
        return sorted(set(names))


# ---- what a user's file may not set


def _file_errors(config_path: str, package: str | None, config: Any) -> Iterator[str]:
    """Yield what is wrong with a file, and the remedy."""
    yield from _path_errors(config_path)
    yield from _package_errors(package or "")
    body = OmegaConf.to_container(config, resolve=False)
    if not isinstance(body, dict):
        return
    if explodes(body):
        yield f"refused, for its interpolations, written out, make more than {LARGEST:,} characters"
    for entry in [entry for entry in body.get("defaults") or [] if entry not in _DEFAULTS_AS_OURS]:
        yield from _default_errors(entry)
    if body.get("trusted"):
        yield "trusted counts from the command line only: take it out, and give trusted=[…] there if you trust it"
    if "hydra" in body:
        for key, value in _leaves(body["hydra"]):
            is_allowed = key in _ALLOWED_HYDRA_KEYS or (
                key.startswith("sweeper.params.") and _PARAMETER.fullmatch(key, len("sweeper.params."))
            )
            if (not is_allowed or isinstance(value, (dict, list))) and (key, value) not in _AS_OURS.items():
                where = f"hydra.{key}".rstrip(".")
                yield f"{where} counts from the command line only: take it out, and give it there if you trust it"


def _leaves(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{where}.{key}" if where else str(key))
    else:
        yield where, node


def _path_errors(path: str) -> Iterator[str]:
    """Yield an error for folders that Hydra would make a package of, and for paths out of the folder."""
    *folders, name = path.removeprefix("/").split("/")
    if not all(_NAME.fullmatch(folder) for folder in folders) or not _FILE.fullmatch(name):
        yield f"config {path} is refused: hydra/… counts from the command line only; else write letters, digits, _ and -"


def _package_errors(package: str) -> Iterator[str]:
    keyword, _, rest = package.partition(".")
    names = (rest if keyword in ("_global_", "_group_", "_here_") else package).split(".")
    if names != [""] and not all(_NAME.fullmatch(name) for name in names):
        yield f"package {package} is refused: hydra and trusted count from the command line only"


def _default_errors(entry: Any) -> Iterator[str]:
    """Yield the errors of an entry of a defaults list.

    Args:
        entry: `path[@package]`, or `[override] [optional] group[@package]: name, names or null`.
    """
    for key, value in entry.items() if isinstance(entry, dict) else [(entry, None)]:
        *words, target = str(key).split(" ")
        path, _, package = target.partition("@")
        yield from _path_errors(f"{path}/_" if isinstance(entry, dict) else path)
        yield from _package_errors(package)
        if set(words) - {"override", "optional"}:
            yield f"{key!r} in its defaults list is refused: write group, group@package, override or optional before them"
        for name in value if isinstance(value, list) else [] if value is None else [value]:
            yield from _path_errors(_CHOICE.sub("x", str(name)))

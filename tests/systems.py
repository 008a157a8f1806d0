"""Windows and macOS, as far as an interpreter on Linux can pretend to be there: what they lack, and how their files behave."""

import builtins
import ctypes
import errno
import io
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

LACKING_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
LACKING = {  # module -> names that it lacks
    "signal": ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGKILL", "SIGCHLD"),
    "os": (
        *("fork", "forkpty", "register_at_fork", "getuid", "geteuid", "getgid", "killpg", "setsid", "mkfifo"),
        *("O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK"),
    ),
}
NO_NAME = set('<>:"|?*')  # letters that no file has there


def pretend(system):
    """Be a Windows or a macOS from here on, in this process; its children do the same if `start` has started it."""
    multiprocessing.set_start_method("spawn", force=True)
    if system == "macos":
        library = ctypes.CDLL
        ctypes.CDLL = lambda name, *more, **options: object() if name is None else library(name, *more, **options)
        return
    sys.modules["msvcrt"] = _msvcrt()
    shutil._use_fd_functions = False
    _bar_modules()
    _change_files()
    start_process = subprocess.Popen.__init__

    def start(self, *arguments, pass_fds=(), **options):
        if pass_fds:
            raise ValueError("pass_fds not supported on Windows.")
        start_process(self, *arguments, **options)

    subprocess.Popen.__init__ = start


def _msvcrt():
    import fcntl

    module = ModuleType("msvcrt")
    module.LK_NBLCK = 2

    def locking(handle, mode, count):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error

    module.locking = locking
    return module


class _Without(ModuleType):
    """A module without some of its names."""

    def __init__(self, module):
        super().__init__(module.__name__)
        self._module = module

    def __getattr__(self, name):
        if name in LACKING[self.__name__]:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._module, name)


def _bar_modules():
    """Have the package's files find neither modules nor names that Windows lacks; libraries, which ask where they are, do."""
    original = builtins.__import__
    without = {name: _Without(module) for name, module in (("os", os), ("signal", signal))}

    def barring(name, globals=None, *more, **options):
        if str((globals or {}).get("__name__", "")).startswith("acge_lightning"):
            if name in LACKING_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in without:
                return without[name]
        return original(name, globals, *more, **options)

    builtins.__import__ = barring


def _change_files():
    """No folder is opened, nothing open is renamed or removed, no name has a colon, and flushing wants a file to write to."""
    _around(os, "open", lambda path, *more, **options: (_check_name(path), _check_no_folder(path)))
    _around(os, "rename", lambda source, target, **options: (_check_free(source), _check_name(target), _check_absent(target)))
    _around(os, "replace", lambda source, target, **options: (_check_free(source), _check_name(target), _check_free(target)))
    _around(os, "mkdir", lambda path, *more, **options: _check_name(path))
    _around(os, "fsync", _check_writable)
    for name in ("unlink", "remove", "rmdir"):
        _around(os, name, lambda path, *more, **options: _check_free(path))
    _around(builtins, "open", lambda path, *more, **options: _check_name(path))
    io.open = builtins.open


def _around(module, name, check):
    function = getattr(module, name)

    def call(*arguments, **options):
        check(*arguments, **options)
        return function(*arguments, **options)

    setattr(module, name, call)


def _check_no_folder(path):
    if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))


def _check_absent(path):
    if os.path.exists(path):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", str(path))


def _check_writable(file):
    import fcntl

    handle = file if isinstance(file, int) else file.fileno()
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")


def _check_name(path):
    if not isinstance(path, (str, os.PathLike)):
        return
    name = os.path.basename(os.fspath(path))
    if isinstance(name, str) and NO_NAME & set(name):
        raise OSError(errno.EINVAL, "Invalid argument", str(path))


def _check_free(path):
    """Raise what Windows raises for a file that is open in this process, or a folder with one in it."""
    if not isinstance(path, (str, os.PathLike)):
        return
    real = os.path.realpath(path)
    for number in os.listdir("/proc/self/fd"):
        try:
            other = os.readlink(f"/proc/self/fd/{number}")
            is_file = stat.S_ISREG(os.stat(int(number)).st_mode)
        except OSError:
            continue
        if is_file and (other == real or other.startswith(f"{real}/")):
            raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used", str(path))


def start(system, code, folder, *words, timeout=280):
    """Run code in a fresh interpreter that pretends to be on a system, as its children do.

    Args:
        system: `windows` or `macos`.
        code: of Python; `sys.argv[1:]` are the words.
        folder: where it runs.
    """
    home = folder / f"{system}-home"
    home.mkdir(exist_ok=True)
    (home / "sitecustomize.py").write_text(f"import systems\nsystems.pretend({system!r})\n", encoding="utf-8")
    places = (home, Path(__file__).parent, Path(__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), "ACGE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-X", "utf8=0", "-c", code, *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout, check=False)

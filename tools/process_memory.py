"""Reads the memory of this process from `/proc`, for benchmarks."""

from pathlib import Path


def memory_mib(field: str) -> float:
    """MiB of a field of `/proc/self/status`: `VmRSS`, what the process holds, or `VmHWM`, its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def reset_peak() -> None:
    """Make `VmHWM` begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

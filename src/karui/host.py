"""What the machine is: facts that stand beside every number, without asking any network."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "nncf",
    "torchao",
    "executorch",
    "coremltools",
    "ai-edge-litert",
)
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # flags of CPUs that multiply bfloat16
TELLING = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "amx_tile",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


def facts() -> dict[str, Any]:
    """CPU, instruction sets, memory, versions, governor, load average."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "flags": telling(flags()),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.platform(),
        "python": platform.python_version(),
        "compiler": shutil.which(os.environ.get("CXX") or "g++"),
        "governor": governor(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "throttled": throttled(),
        "versions": versions(),
    }


def warnings(found: dict[str, Any]) -> list[str]:
    """What makes timings on this machine less trustworthy, in words with advice."""
    said = []
    if found["load_average"][0] > 0.5 * (found["cores"] or 1):
        said.append(
            f"load average {found['load_average'][0]}: other work runs here; ratios are paired "
            "and hold, absolute times will not"
        )
    if found["governor"] not in (None, "performance"):
        said.append(f"CPU governor is {found['governor']}: set it to performance for steadier times")
    if found["throttled"]:
        said.append("the CPU has been throttled by heat: let it cool")
    return said


def cpu_name() -> str:
    for line in cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def flags() -> frozenset[str]:
    """Instruction sets as the kernel names them; empty where the system does not tell."""
    for line in cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def telling(flags: Collection[str]) -> list[str]:
    """Those that decide how fast a model runs."""
    return [flag for flag in TELLING if flag in flags]


def saturates(flags: frozenset[str]) -> bool:
    """Whether sums of u8 x s8 products overflow 16 bits: x86 without VNNI needs 7-bit weights."""
    return "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni"}


def cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def cpus() -> list[int]:
    """Those that this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def governor() -> str | None:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text().strip() if path.exists() else None


def throttled() -> int:
    path = Path("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count")
    return int(path.read_text()) if path.exists() else 0


def versions() -> dict[str, str]:
    """Installed versions of karui and the packages that decide what runs."""
    found = {}
    for package in ("karui", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def give_back() -> None:
    """Return memory that was freed to the system, where the C library can be asked (glibc).

    It keeps what came in pieces below 32 MB, and a process that frees as much as it takes grows all the same.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)

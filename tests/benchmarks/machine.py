"""What figures depend on: the machine, and versions.

Stays on the standard library, see runs.py.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path


def printed(python: Path, code: str) -> str:
    """What a line of code prints."""
    return subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def version(python: Path, package: str) -> str:
    return printed(python, f"import importlib.metadata as m; print(m.version({package!r}))")


def has_cuda() -> bool:
    return printed(Path(sys.executable), "import torch; print(torch.cuda.is_available())") == "True"


def processor() -> str:
    """The name that Linux has for it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def facts(mergekit_python: Path | None = None, sd_mecha_python: Path | None = None) -> dict[str, str]:
    found = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "CPUs": f"{os.cpu_count()} {processor()}",
        "load": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
    }
    own = Path(sys.executable)
    for package in ("numpy", "torch", "safetensors"):
        found[package] = version(own, package)
    for package, python in (("mergekit", mergekit_python), ("sd-mecha", sd_mecha_python)):
        if python:
            found[package] = version(python, package)
    return found

"""What kind of processor this machine has, as a key for what was measured on it: a cache folder may be shared by machines.

It also tells whether there are GPUs, without a library that could use them."""

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_GPUS = Path("/proc/driver/nvidia/gpus")
_KINDS_OF_INSTRUCTIONS = ("avx", "amx", "vnni", "bf16", "asimd", "sve", "i8mm")


def has_gpus(driver: Path = _GPUS) -> bool:
    """Return whether the driver of this machine's GPUs shows one."""
    return any(driver.glob("*"))


def processor(cpuinfo: Path = _CPUINFO) -> str:
    """Return its name and its kinds of vector instructions, one line; what Python knows where the system tells nothing."""
    try:
        told = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", told, re.MULTILINE)
    wide = (
        [flag for flag in flags.group(1).split() if any(kind in flag for kind in _KINDS_OF_INSTRUCTIONS)]
        if flags
        else []
    )
    name = re.search(r"^model name\s*:\s*(.*)$", told, re.MULTILINE)
    return " ".join([name.group(1) if name else platform.machine(), *sorted(wide)])

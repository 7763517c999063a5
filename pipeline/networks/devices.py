"""Where networks compute: the processor or a GPU."""

import platform
import re
from pathlib import Path

import torch


def choose_device(name: str) -> torch.device:
    """The device called "cpu", "cuda" or "mps"; "auto" takes the first that is there of cuda, mps, cpu."""
    is_there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(device for device, there in is_there.items() if there))
    if name not in is_there:
        raise ValueError(f"device must be auto, cpu, cuda or mps, got {name!r}")
    if not is_there[name]:
        raise ValueError(f"device {name!r} is not on this machine, or this build of torch does not know it")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Model name of the processor or GPU, for the record of a run."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if named:
            return named[1].strip()
    return platform.processor() or platform.machine()

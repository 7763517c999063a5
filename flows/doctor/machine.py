"""Checks of this machine: disk, rights, versions, GPU, clock."""

import os
import platform
import shlex
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from zoneinfo import ZoneInfo

import pynvml
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from connectors.health import CLOCK_TOLERANCE, SET_CLOCK, Finding, failure, warning
from deploy.logins import password_file, read_password
from deploy.private import is_open_to_others
from deploy.programs import HEALTH
from flows.artefacts import CAMPAIGN
from flows.config import ConfigError
from flows.doctor.subject import Subject
from flows.home import SERVERS
from flows.serve.schedule import machine_timezone
from pipeline.networks.devices import choose_device, device_name

NO_ROOM, LITTLE_ROOM = 200e6, 2e9
"""Free bytes below which a round cannot be written, and below which somebody should look."""
LITTLE_GPU_MEMORY = 2e9
SHOWN = ("torch", "torchvision", "prefect", "mlflow", "sqlalchemy", "fastapi")
"""Packages whose versions decide whether the servers and the networks work."""


def disk(subject: Subject) -> Iterator[Finding]:
    """Room and rights where the campaign, the servers and the features are kept; a finding for each disk."""
    places = {"local servers": subject.home, "features": subject.home / "features"}
    if subject.folder is not None:
        places = {"campaign": subject.folder.path, **places}
    disks: dict[int, dict[str, Path]] = defaultdict(dict)
    for what, place in places.items():
        there = _that_exists(place)
        disks[there.stat().st_dev][what] = there
    for of_disk in disks.values():
        yield _disk(of_disk)


def _disk(places: dict[str, Path]) -> Finding:
    name, path = "disk", next(iter(places.values()))
    for what, place in places.items():
        if not os.access(place, os.W_OK | os.X_OK):
            mend = "give yourself the right to write there (chmod, chown), or mount the disk for writing"
            return failure(name, f"{place}, for the {what}, cannot be written to", mend)
    free = shutil.disk_usage(path).free
    told = f"{free / 1e9:.1f} GB free in {path}, for {', '.join(places)}"
    mend = "free some space; `labelcycle cache --shrink-to 1` throws features away, which are computed anew"
    if os.statvfs(path).f_files and not os.statvfs(path).f_favail:
        return failure(name, f"{path} takes no more files, whatever their size", "delete files there that nobody needs")
    if free < LITTLE_ROOM:
        return (failure if free < NO_ROOM else warning)(name, told, mend)
    return Finding(name, told)


def _that_exists(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def privacy(subject: Subject) -> Iterator[Finding]:
    """What the campaign and the local servers keep is for their owner."""
    own = [subject.home / name for name in (*HEALTH, "logs")]
    if subject.folder is not None:
        own = [subject.folder.path, *own]
    if (subject.home / SERVERS).exists():
        read_password(subject.home)  # or why nobody should use it
        own.append(password_file(subject.home))
    opened = [str(path) for path in own if path.exists() and is_open_to_others(path)]
    if opened:
        mend = shlex.join(["chmod", "-R", "o-rwx", *opened])
        yield warning("privacy", f"other users of this machine can look into {', '.join(opened)}", mend)
    else:
        yield Finding("privacy", "other users of this machine cannot look into the folders of campaign and servers")


def versions(subject: Subject) -> Iterator[Finding]:
    """Python and the packages are those that the installed labelcycle asks for."""
    try:
        ours = metadata.distribution("labelcycle")
    except metadata.PackageNotFoundError:
        yield warning(
            "versions", "labelcycle is not installed here, so that nobody knows what it needs", "make install"
        )
        return
    have = {"Python": platform.python_version()}
    wrong = []
    wanted = ours.metadata["Requires-Python"]
    if wanted and not SpecifierSet(wanted).contains(have["Python"], prereleases=True):
        wrong.append(f"Python {have['Python']} where {wanted} is wanted")
    for line in ours.requires or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(have[requirement.name], prereleases=True):
            wrong.append(f"{requirement.name} {have[requirement.name]} where {requirement.specifier} is wanted")
    if wrong:
        yield failure("versions", "; ".join(wrong), "make install, which installs what requirements.lock names")
    else:
        yield Finding("versions", ", ".join(f"{name} {have[name]}" for name in ("Python", *SHOWN) if name in have))


def gpu(subject: Subject) -> Iterator[Finding]:
    """The device that the campaign asks for is there, and has room."""
    wanted = subject.settings.model.device if subject.settings else "auto"
    try:
        device = choose_device(wanted)
    except ValueError as exc:
        mend = 'mend the GPU\'s driver, install a build of torch that knows it, or set device = "auto" in [model]'
        yield failure("GPU", str(exc), mend)
        return
    told = f"networks compute on {device.type}: {device_name(device)}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        told = f"{told}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if free < LITTLE_GPU_MEMORY:
            yield warning("GPU", told, "end other programs that use the GPU: see nvidia-smi")
            return
    unused = _gpus_of_driver() if wanted == "auto" and device.type == "cpu" else []
    if unused:
        found = f"{told}, though there is {', '.join(unused)}"
        yield warning(
            "GPU", found, f"install a build of torch for this GPU and its driver; torch is {torch.__version__}"
        )
        return
    yield Finding("GPU", told)


def _gpus_of_driver() -> list[str]:
    """GPUs that the driver knows, whether torch does or not."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []


def clock(subject: Subject) -> Iterator[Finding]:
    """The time zone has a name, and the clock was not set back; servers' clocks stand with the servers."""
    settings = subject.settings
    try:
        zone = (settings and settings.timezone) or machine_timezone()
    except ConfigError as exc:
        mend = 'set timezone in the campaign file, for example timezone = "Europe/Berlin", or that of the machine'
        yield (failure if settings and settings.schedule else warning)("clock", str(exc), mend)
        return
    path = subject.folder.path_of(CAMPAIGN) if subject.folder else None
    if path and path.exists() and path.stat().st_mtime - time.time() > CLOCK_TOLERANCE.total_seconds():
        yield warning("clock", f"{path} was written in what is the future now: the clock was set back", SET_CLOCK)
        return
    yield Finding("clock", f"{datetime.now(ZoneInfo(zone)):%Y-%m-%d %H:%M} in {zone}")

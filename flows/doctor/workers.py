"""The check of a campaign's workers: the cluster answers, has what the settings ask for, and sees what they name."""

import os
from collections.abc import Iterator

import torch

from connectors.health import Finding, failure
from flows.doctor.subject import Subject
from flows.workers.cluster import joined, load_ray, place_of


def ray(subject: Subject) -> Iterator[Finding]:
    """Workers of Ray can be had. A cluster that a run begins for itself is not begun to look at it."""
    name, work = "workers", subject.work
    if work is None or work.settings.workers == "local":
        return
    settings = work.settings
    load_ray()
    if settings.ray_address is None:
        n_cpus, n_gpus = os.cpu_count() or 1, torch.cuda.device_count()
        has = f"a run begins Ray on this machine, which has {n_cpus} processors and {n_gpus} GPUs"
        wanted_cpus, wanted_gpus = settings.needs(settings.gpus_per_network)
        if n_cpus < wanted_cpus or n_gpus < max(wanted_gpus, settings.ray_gpus):
            asked = f"ray_cpus = {settings.ray_cpus}, ray_gpus = {settings.ray_gpus:g}"
            yield failure(name, has, f"lower {asked} or gpus_per_network = {settings.gpus_per_network}")
        else:
            yield Finding(name, has)
        return
    there = next(each for each in (work.folder.path, *work.folder.path.absolute().parents) if each.exists())
    with joined(settings, there, seen=work.seen) as machines:
        yield Finding(name, f"{place_of(settings)} has {len(machines)} machines that fit and see {there}")

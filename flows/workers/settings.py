"""Which workers a campaign has, and what each may take."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.settings import Settings

HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})")


def _check_address(value: str) -> str:
    if value.startswith("ray://"):
        raise ValueError(
            "labelcycle runs on a machine of the cluster, and Ray's client, ray://, is not supported: start Ray on "
            "this machine with `ray start --address=HOST:PORT`, and write 'HOST:PORT' here"
        )
    if not HOST_AND_PORT.fullmatch(value):
        raise ValueError("the address of a cluster is that of its head, 'HOST:PORT', for example '10.0.0.5:6379'")
    return value


def _check_gpus(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("GPUs are given in fractions of one, or as a whole number")
    return value


class WorkerSettings(Settings):
    """Who trains members and scores the pool."""

    workers: Literal["local", "ray"] = Field(
        "local", description="who trains members and scores: this process, or workers of Ray side by side"
    )
    ray_address: Annotated[str, AfterValidator(_check_address)] | None = Field(
        None, description="HOST:PORT of a Ray cluster; if not given, Ray is started on this machine for each run"
    )
    ray_cpus: int = Field(1, ge=1, le=1024, description="processors of a worker of Ray, as threads of torch")
    ray_gpus: Annotated[float, AfterValidator(_check_gpus)] = Field(
        0, ge=0, le=64, description="GPUs of a worker of Ray; of 0.25 four share one"
    )
    gpus_per_network: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs of one machine that train a whole network together; processes, where ray_gpus is 0",
    )

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.ray_address is not None and self.workers == "local":
            raise ValueError(
                "ray_address names a cluster, and workers = 'local' uses none: set workers = \"ray\", or leave "
                "ray_address out"
            )
        if self.gpus_per_network > 1 and self.workers == "local":
            raise ValueError(
                f"gpus_per_network = {self.gpus_per_network} lets workers of Ray train a network together, and "
                "workers = 'local' has none: set workers = \"ray\", or leave gpus_per_network out"
            )
        return self

    def needs(self, together: int = 1) -> tuple[int, float]:
        """Processors and GPUs of a worker whose pieces so many processes do together."""
        if together == 1:
            return self.ray_cpus, self.ray_gpus
        return self.ray_cpus * together, together if self.ray_gpus else 0

"""Where random numbers come from: one generator for each purpose of each round."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import torch

_GLOBAL_GENERATORS = threading.RLock()


def seeded_generator(seed: int, round_number: int, purpose: str) -> torch.Generator:
    """Return a CPU generator that gives the same numbers on every machine and in every run.

    Args:
        seed: of the campaign.
        round_number: of the round.
        purpose: what the numbers are for; another purpose gets numbers of its own, so that adding a random
            choice somewhere leaves the others as they were.

    >>> draw = lambda purpose: torch.randint(1000, (3,), generator=seeded_generator(0, 1, purpose)).tolist()
    >>> draw("strategy") == draw("strategy"), draw("strategy") == draw("random slice")
    (True, False)
    """
    digest = sha256(f"{seed}/{round_number}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def derive_seed(seed: int, round_number: int, purpose: str) -> int:
    """Return a seed below 2**31 for code that takes numbers rather than generators.

    >>> derive_seed(0, 1, "member-0") == derive_seed(0, 1, "member-0"), derive_seed(0, 1, "member-0") == 0
    (True, False)
    """
    return int(torch.randint(2**31, (1,), generator=seeded_generator(seed, round_number, purpose)))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, which dropout reads, for a while; the caller's states come back.

    Threads take turns. On Apple's GPU the state is not put back.
    """
    devices = [device] if device.type == "cuda" else []
    with _GLOBAL_GENERATORS, torch.random.fork_rng(devices, device_type="cuda"):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield

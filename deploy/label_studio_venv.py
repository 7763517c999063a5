"""The environment of the local Label Studio: its packages do not go together with ours."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import filelock

from deploy.logins import ServerError
from deploy.processes import tail

LABEL_STUDIO_LOCK = Path(__file__).with_name("label-studio.lock")


def install_label_studio(venv: Path, say: Callable[[str], None]) -> None:
    """Make `venv` hold exactly what the lock file names, unless it was made from that very lock."""
    digest = hashlib.sha256(LABEL_STUDIO_LOCK.read_bytes()).hexdigest()
    mark = venv / "label-studio.lock.sha256"
    venv.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(venv.with_name(f"{venv.name}.lock")):
        if mark.exists() and mark.read_text() == digest:
            return
        say(f"label-studio: installing into {venv}")
        python = venv / "bin" / "python"
        if not python.exists():
            run_uv("venv", "--quiet", "--python", sys.executable, str(venv))
        run_uv("pip", "sync", "--quiet", "--require-hashes", "--python", str(python), str(LABEL_STUDIO_LOCK))
        mark.write_text(digest)


def run_uv(*arguments: str) -> None:
    """Run the uv that came with labelcycle; no other needs to be on the PATH."""
    try:
        from uv import find_uv_bin

        done = subprocess.run([find_uv_bin(), *arguments], capture_output=True, text=True, check=False)
    except (ImportError, FileNotFoundError) as exc:
        raise ServerError("installing Label Studio needs the package uv: run `make install`") from exc
    if done.returncode:
        raise ServerError(f"uv {arguments[0]} failed with {done.returncode}:\n{tail(done.stderr)}")

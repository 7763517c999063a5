"""What runs leave behind is found, and what they lose comes back."""

import subprocess
import sys

import obstore
from tenacity import Retrying, stop_after_delay, wait_fixed

from flows.workers.cluster import OWN_FOLDER, short_folder
from tests import s3
from tests.soak.losses import left_of_ray


def test_folder_and_process_of_a_private_cluster_are_found():
    with subprocess.Popen([sys.executable, "-c", "pass"]) as ended:
        ended.wait()
    folder = short_folder() / f"{OWN_FOLDER}{ended.pid}-test"
    folder.mkdir()
    program = [sys.executable, "-c", "import time; time.sleep(60)", str(folder)]
    with subprocess.Popen(program) as left:
        try:
            found = list(left_of_ray([ended.pid]))
            assert [line.partition(" was left")[0] for line in found] == [str(folder), f"process {left.pid}"]
            assert list(left_of_ray([ended.pid + 1])) == list(left_of_ray([])) == []
        finally:
            left.kill()
            folder.rmdir()


def test_store_that_was_killed_comes_back_with_what_it_had(tmp_path):
    home = tmp_path / "s3"
    try:
        s3.shared(home).put("pool", {"a.png": b"1"})
        s3.kill(home)
        server = s3.shared(home, anew=False)
        for attempt in Retrying(stop=stop_after_delay(30), wait=wait_fixed(0.2), reraise=True):
            with attempt:  # a server that just began may not have found its objects yet
                assert obstore.get(server.store("pool"), "a.png").bytes() == b"1"
    finally:
        s3.stop(home)

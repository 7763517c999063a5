import os
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from connectors.feature_store import FeatureCache, clear, shrink, usage

DAY = 86_400


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


def names(n, prefix="item"):
    return [f"{prefix}{number:04d}" for number in range(n)]


def files(folder, pattern="*.arrow"):
    return sorted(folder.rglob(pattern))


class TestCache:
    @pytest.mark.parametrize("shape", [(8,), (2, 3, 3), (1,)])
    def test_gives_back_the_bits_in_the_order_asked(self, tmp_path, shape):
        features = numbers(30, *shape)
        ids = names(30)
        writer = FeatureCache(tmp_path, "key")
        for start in range(0, 30, 7):
            writer.append(ids[start : start + 7], features[start : start + 7])
        order = [*torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist(), 3, 3]
        for cache in (writer, FeatureCache(tmp_path, "key")):
            assert torch.equal(cache.read([ids[p] for p in order]).view(torch.int16), features[order].view(torch.int16))
            assert len(cache) == 30

    def test_finds_what_a_dictionary_finds(self, tmp_path):
        generator = np.random.default_rng(0)
        # Of every length, one the beginning of another.
        universe = sorted({"".join(generator.choice(list("ab0"), size=n)) for n in generator.integers(1, 6, 200)})
        known, cache = {}, FeatureCache(tmp_path, "key")
        for step in range(12):
            drawn = [str(item) for item in generator.choice(universe, size=5, replace=False)]
            new = [item for item in drawn if item not in known]
            rows = numbers(len(new), 4, seed=step)
            FeatureCache(tmp_path, "key").append(new, rows)
            known |= dict(zip(new, rows, strict=True))
            asked = [str(item) for item in generator.choice(universe, size=20)]
            assert cache.missing(asked).tolist() == [p for p, item in enumerate(asked) if item not in known]
            there = [item for item in asked if item in known]
            if there:
                assert torch.equal(cache.read(there), torch.stack([known[item] for item in there]))

    def test_keeps_keys_apart(self, tmp_path):
        FeatureCache(tmp_path, "one").append(["a"], numbers(1, 4))
        assert FeatureCache(tmp_path, "other").missing(["a"]).tolist() == [0]

    def test_takes_the_first_file_of_two_with_the_same_item(self, tmp_path):
        for value in (1.0, 2.0, 3.0):
            FeatureCache(tmp_path, "key").append(["a"], torch.full((1, 2), value).half())
        for path in files(tmp_path)[1:]:
            assert len(FeatureCache(tmp_path, "key")) == 1
            kept = FeatureCache(tmp_path, "key").read(["a"])
            path.unlink()
            assert torch.equal(FeatureCache(tmp_path, "key").read(["a"]), kept)

    def test_refuses_to_read_what_is_not_there(self, tmp_path):
        cache = FeatureCache(tmp_path, "key")
        cache.append(["a"], numbers(1, 4))
        with pytest.raises(KeyError, match="lacks 2 of 3 items: b, c"):
            cache.read(["b", "a", "c"])

    @pytest.mark.parametrize("features", [numbers(2, 4).float(), numbers(3, 4)])
    def test_refuses_to_append_another_type_or_number(self, tmp_path, features):
        with pytest.raises(ValueError, match="wanted float16 features of 2 items, got"):
            FeatureCache(tmp_path, "key").append(["a", "b"], features)

    def test_lets_go_of_a_file_that_was_removed(self, tmp_path):
        cache, features = FeatureCache(tmp_path, "key"), numbers(9, 4)
        for rows in (slice(0, 3), slice(3, 6), slice(6, 9)):
            cache.append(names(9)[rows], features[rows])
            assert torch.equal(cache.read(names(9)[rows]), features[rows])
        cache.append(names(5), features[:5])  # some of them twice
        for path in files(tmp_path):
            if pa.ipc.open_file(path).read_all()["item_id"][0].as_py().decode() == names(9)[3]:
                path.unlink()
        assert cache.missing(names(9)).tolist() == [5]
        missing, kept = cache.read_kept(names(9))
        assert missing.tolist() == [5]
        rest = [0, 1, 2, 3, 4, 6, 7, 8]
        assert torch.equal(kept[rest], features[rest])
        clear(tmp_path)
        assert cache.missing(names(9)).tolist() == list(range(9))
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
        cache.append(names(9), features)
        assert torch.equal(cache.read(names(9)), features)

    @pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what a process holds")
    def test_a_process_holds_no_features_that_it_has_read(self, tmp_path):
        cache, features = FeatureCache(tmp_path, "key"), numbers(4000, 512)
        cache.append(names(4000), features)
        for _ in range(2):
            assert torch.equal(cache.read(names(4000)), features)
            _, mapped = Path("/proc/self/smaps").read_text().split(str(files(tmp_path)[0]))
            assert int(mapped.split("Rss:")[1].split()[0]) < 100, "of 4,000 kB"

    def test_finds_items_of_many_files_in_few_looks(self, tmp_path):
        cache = FeatureCache(tmp_path, "key")
        for number in range(64):
            cache.append([f"{number}"], numbers(1, 4, seed=number))
            cache.missing(["0"])
        assert len(cache._runs) <= 7
        assert torch.equal(cache.read(["63", "5"]), torch.cat([numbers(1, 4, seed=63), numbers(1, 4, seed=5)]))

    def test_appends_while_its_folder_is_removed_again_and_again(self, tmp_path):
        cache, stop, features = FeatureCache(tmp_path, "key"), threading.Event(), numbers(1, 4)

        def remove():
            while not stop.is_set():
                clear(tmp_path)

        remover = threading.Thread(target=remove)
        remover.start()
        try:
            for _ in range(300):
                cache.append(["a"], features)
                cache.read_kept(["a"])
        finally:
            stop.set()
            remover.join()
        cache.append(["a"], features)
        assert torch.equal(cache.read(["a"]), features)

    def test_serves_threads(self, tmp_path):
        cache, features, errors = FeatureCache(tmp_path, "key"), numbers(200, 4), []

        def work(first):
            try:
                for start in range(first, 200, 40):
                    cache.append(names(200)[start : start + 10], features[start : start + 10])
                    assert torch.equal(cache.read(names(200)[start : start + 10]), features[start : start + 10])
            except Exception as exc:
                errors.append(exc)

        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 10, 20, 30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert torch.equal(cache.read(names(200)), features)


class TestDamage:
    def test_never_gives_wrong_numbers_whichever_byte_is_wrong(self, tmp_path, caplog):
        features = numbers(5, 6)
        FeatureCache(tmp_path, "key").append(names(5), features)
        (path,) = files(tmp_path)
        content = path.read_bytes()
        n_damaged = 0
        for position in range(0, len(content), 5):
            wrong = bytearray(content)
            wrong[position] ^= 1 << position % 8
            path.write_bytes(wrong)
            cache = FeatureCache(tmp_path, "key")
            if len(cache.missing(names(5))):
                n_damaged += 1
                assert len(cache.missing(names(5))) == 5
                assert not path.exists()
            else:  # a byte that carries nothing
                assert torch.equal(cache.read(names(5)), features)
        assert n_damaged > 30
        assert caplog.text.count("is damaged and is removed, its features are computed again") == n_damaged

    @pytest.mark.parametrize("content", [b"", b"no features", b"ARROW1\0\0" + bytes(5000)])
    def test_sets_a_file_aside_that_holds_something_else(self, tmp_path, content, caplog):
        cache, features = FeatureCache(tmp_path, "key"), numbers(2, 4)
        cache.append(["a", "b"], features)
        (tmp_path / "key" / "0.arrow").write_bytes(content)
        assert torch.equal(cache.read(["a", "b"]), features)
        assert "0.arrow is damaged" in caplog.text
        assert len(files(tmp_path)) == 1

    @pytest.mark.parametrize("n_damaged", [1, 2, 3])
    def test_falls_back_on_another_file_with_the_same_items_if_that_is_whole(self, tmp_path, n_damaged):
        features = numbers(4, 64)
        for _ in range(3):
            FeatureCache(tmp_path, "key").append(names(4), features)
        cache = FeatureCache(tmp_path, "key")
        for path in files(tmp_path)[:n_damaged]:
            content = bytearray(path.read_bytes())
            start = content.index(features.numpy().tobytes())
            content[start] ^= 1
            path.write_bytes(content)
        if n_damaged < 3:
            assert torch.equal(cache.read(names(4)), features)
        else:
            assert cache.missing(names(4)).tolist() == [0, 1, 2, 3]
        assert len(files(tmp_path)) == 3 - n_damaged

    def test_sets_a_file_aside_that_was_cut_off(self, tmp_path, caplog):
        FeatureCache(tmp_path, "key").append(names(50), numbers(50, 64))
        (path,) = files(tmp_path)
        path.write_bytes(path.read_bytes()[:-100])
        cache = FeatureCache(tmp_path, "key")
        assert len(cache.missing(names(50))) == 50
        cache.append(names(50), numbers(50, 64))
        assert torch.equal(cache.read(names(50)), numbers(50, 64))


class TestCleaning:
    def fill(self, folder, key, *, n_files, used):
        """`n_files` of the same size, the oldest first, of a key used last at `used`."""
        paths = []
        for number in range(n_files):
            FeatureCache(folder, key).append(names(10, f"{key}{number}"), numbers(10, 32))
            (path,) = set(files(folder / key)) - set(paths)
            os.utime(path, (used - 1000 + number,) * 2)
            paths.append(path)
        os.utime(folder / key / "used", (used, used))
        return paths

    def test_usage_tells_keys_items_and_bytes_last_used_first(self, tmp_path):
        self.fill(tmp_path, "old", n_files=2, used=1_000_000)
        self.fill(tmp_path, "new", n_files=1, used=2_000_000)
        FeatureCache(tmp_path, "new").append(names(10, "new0"), numbers(10, 32))  # all of them twice
        os.utime(tmp_path / "new" / "used", (2_000_000, 2_000_000))
        new, old = usage(tmp_path)
        assert (new.key, new.n_items, new.last_used.timestamp()) == ("new", 10, 2_000_000)
        assert (old.key, old.n_items, old.last_used.timestamp()) == ("old", 20, 1_000_000)
        assert old.n_bytes == sum(path.stat().st_size for path in files(tmp_path / "old"))
        assert usage(tmp_path / "nowhere") == []

    def test_shrink_removes_the_key_not_used_for_longest_then_the_oldest_files(self, tmp_path):
        old = self.fill(tmp_path, "old", n_files=2, used=1_000_000)
        new = self.fill(tmp_path, "new", n_files=3, used=2_000_000)
        size = new[0].stat().st_size
        shrink(tmp_path, 5 * size)
        assert len(files(tmp_path)) == 5
        shrink(tmp_path, 5 * size - 1)
        assert files(tmp_path) == sorted([old[1], *new])
        shrink(tmp_path, 2 * size)
        assert files(tmp_path) == sorted(new[1:])
        assert not (tmp_path / "old").exists()
        shrink(tmp_path, 0)
        assert not list(tmp_path.iterdir())
        shrink(tmp_path / "nowhere", 0)

    def test_reading_is_use(self, tmp_path):
        read = self.fill(tmp_path, "read", n_files=1, used=1_000_000)
        self.fill(tmp_path, "unread", n_files=1, used=2_000_000)
        FeatureCache(tmp_path, "read").read(names(10, "read0"))
        shrink(tmp_path, read[0].stat().st_size)
        assert files(tmp_path) == read

    def test_temporary_files_are_ignored_and_removed_when_old(self, tmp_path):
        cache = FeatureCache(tmp_path, "key")
        cache.append(["a"], numbers(1, 4))
        young, old = (tmp_path / "key" / f".{name}.arrow.x.part" for name in ("young", "old"))
        for path, age in ((young, DAY / 2), (old, 2 * DAY)):
            path.write_bytes(b"half")
            os.utime(path, (time.time() - age,) * 2)
        assert cache.missing(["a"]).tolist() == []
        shrink(tmp_path, 10**9)
        assert young.exists()
        assert not old.exists()
        clear(tmp_path)
        assert young.exists()
        assert usage(tmp_path)[0].n_items == 0

"""Items are found by their ids, whichever share a key, and of equal ones the first."""

import numpy as np
import pytest

from connectors import ids
from connectors.ids import Run, as_bytes, merged


@pytest.mark.parametrize("n_keys", [2**64 - 1, 50, 1])
def test_what_is_found_is_what_a_dict_finds(monkeypatch, n_keys):
    keys_of = ids._keys_of
    monkeypatch.setattr(ids, "_keys_of", lambda some: keys_of(some) % np.uint64(n_keys))
    drawn = np.random.default_rng(0).integers(0, 900, 500)
    files = [as_bytes([f"{number:x}" for number in part]) for part in (drawn[:200], drawn[200:201], drawn[201:])]
    run = merged([Run.of_file(number, held) for number, held in enumerate(files)])
    places: dict[bytes, tuple[int, int]] = {}
    for number, held in enumerate(files):
        for row, one in enumerate(held.tolist()):
            places.setdefault(one, (number, row))
    wanted = as_bytes([f"{number:x}" for number in range(1000)])
    is_there, at = run.find(wanted)
    assert is_there.tolist() == [one in places for one in wanted.tolist()]
    found = zip(run.files[at[is_there]].tolist(), run.rows[at[is_there]].tolist(), strict=True)
    assert list(found) == [places[one] for one in wanted[is_there].tolist()]
    assert not run.without([0, 1, 2]).find(wanted)[0].any()


def test_ids_of_other_lengths_have_keys_of_their_own():
    some = [f"{number:032x}" for number in range(5000)] + [str(number) for number in range(5000)]
    assert len(np.unique(ids._keys_of(as_bytes(some)))) == len(some)
    short, long = as_bytes(["ab"]), as_bytes(["ab", "a" * 40])
    assert ids._keys_of(short)[0] == ids._keys_of(long)[0]

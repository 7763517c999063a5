from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.pool.dependence import advice, are_many, find_series, near_copies
from pipeline.pool.group_rules import check_rule, groups_of


def films(form, *, n_films=16, n_frames=10):
    return [form.format(film, frame) for film in range(n_films) for frame in range(n_frames)]


@pytest.mark.parametrize(
    ("paths", "groups"),
    [
        (films("video{:02d}_frame{:04d}.png"), 16),
        (films("v{}_{}.jpg"), 16),
        (films("clip {} ({}).jpg"), 16),
        (films("clip_{}/{:06d}.jpg"), 16),
        (films("patient{:03d}/slice_{:03d}.png"), 16),
        (films("a.b/cam{}-{:d}-left.jp2"), 16),
        ([f"frame_{number:05d}.png" for number in range(0, 1000)], 10),
        ([f"IMG_202401{day:02d}_12{day:02d}{second:02d}.jpg" for day in range(1, 29) for second in range(4)], 28),
        ([f"2024-01-{day:02d} 12.{day:02d}.0{second}.jpg" for day in range(1, 29) for second in range(4)], 28),
    ],
)
def test_names_of_films_and_bursts_give_a_rule_that_fits_them(paths, groups):
    series = find_series(paths, classes=["a", "b"])
    assert series.n_images == len(paths)
    assert series.example in paths
    found = Counter(groups_of(paths, check_rule(series.rule)))
    assert None not in found
    assert len(found) == groups


@pytest.mark.parametrize(
    "paths",
    [
        [],
        ["a.png"],
        [f"{number:05d}.png" for number in range(500)],
        [f"IMG_{number:04d}.JPG" for number in range(500)],
        [f"{number // 100:03d}/{number:06d}.jpg" for number in range(500)],
        [f"{name}/{number}.jpg" for name in ("cat", "dog") for number in range(50)],
        [f"Train/{name}/{number}.jpg" for name in ("Cats", "Dogs") for number in range(50)],
        [f"{name}.{number}.jpg" for name in ("cat", "dog") for number in range(50)],
        [f"golden_retriever_{number}.jpg" for number in range(50)] + [f"cat_{number}.jpg" for number in range(50)],
        [f"IMG_202401{day:02d}_{hour:02d}0000.jpg" for day in range(1, 29) for hour in range(8, 20)],
        [f"{frame}_video{film}.png" for film in range(5) for frame in range(9)],
        [f"{number:032x}.png" for number in range(1, 10**30, 10**28)],
        [f"99999999_{number:06d}.png" for number in range(100)],
    ],
)
def test_other_names_say_nothing(paths):
    assert find_series(paths, classes=["cat", "dog", "golden retriever"]) is None


def test_a_few_frames_among_other_images_say_nothing():
    others = [f"{number * 7919 % 100003:x}.png" for number in range(200)]
    assert find_series([*others, *films("v{}_f{}.png", n_films=2, n_frames=4)]) is None


def thumbs(values):
    return torch.from_numpy(np.clip(values, 0, 255).astype(np.uint8))[:, None]


def smooth(draw, n, side=16):
    coarse = torch.from_numpy(draw.normal(0, 50, (n, 1, 6, 6)))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")[:, 0].numpy() + 128


def test_frames_are_near_copies_and_other_pictures_are_not():
    draw = np.random.default_rng(0)
    films = smooth(draw, 40)
    frame = films + draw.normal(0, 2, films.shape)
    near = near_copies(thumbs(frame), thumbs(films + draw.normal(0, 2, films.shape)))
    assert near.double().mean() > 0.95
    assert not near_copies(thumbs(frame[:20]), thumbs(films[20:])).any()


def test_what_all_images_share_makes_no_copies():
    draw = np.random.default_rng(0)
    shared = smooth(draw, 1)
    images = shared + 0.1 * (smooth(draw, 60) - 128)
    assert not near_copies(thumbs(images[:20]), thumbs(images[20:])).any()


def test_digits_are_no_near_copies():
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images * 15.9).to(torch.uint8)[:, None]
    assert not are_many(near_copies(digits[:250], digits[250:1250]))


def test_plain_images_are_not_compared():
    plain = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 16, 16)
    assert not near_copies(plain[:10], plain[10:]).any()
    assert not near_copies(plain[:10], plain[:0]).any()
    assert len(near_copies(plain[:0], plain)) == 0


def test_advice_says_what_to_write_into_the_file():
    series = find_series(films("v{}_{}.jpg"))
    near = torch.tensor([True] * 5 + [False] * 15)
    by_name, by_look = advice(series, near, measured_on="the audit set")
    assert by_name.startswith("160 names look like 16 series of frames, for example v0_0.jpg.")
    assert by_name.endswith(f"group = '{series.rule}'")
    assert by_look.startswith("5 of 20 images of the audit set have a near-copy outside of it.")
    assert advice(None, near & False, measured_on="the audit set") == advice(None, None, measured_on="it") == []
    assert "column group" in advice(None, near, measured_on="the audit set")[0]

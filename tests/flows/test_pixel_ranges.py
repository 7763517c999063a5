"""A camera of 12 bits in files of 16, from the pool to the saved model."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from connectors.images.pixels import load_images
from connectors.images.ranges import measure_ranges
from connectors.images.reading import Range, Reading
from connectors.memory import MemoryTool, MemoryTracker
from connectors.objects.reading import Objects
from connectors.store import read_json
from flows.artefacts import AUDIT, CAMPAIGN, CANDIDATES, LABELLED, METRICS, PIXEL_RANGES
from flows.cache import features_of
from flows.campaign import OpenCampaign
from flows.cli import app
from flows.config import ConfigError, load_settings, resolved
from flows.folder import Campaign, Folder
from flows.pixel_ranges import settle_ranges
from flows.predict import predictions
from flows.records import PixelRanges
from flows.replay.command import replay_strategies
from flows.replay.inputs import ReplayError
from flows.replay.options import Options
from flows.round import notes_on_pages, refresh_pool, settle_pixel_ranges
from flows.steps.evaluate import evaluate
from flows.steps.plan import plan as plan_of
from flows.steps.train import _inputs, _Lessons, cross_validate, network_form
from pipeline.learning.networks import frozen_body
from pipeline.networks.features import extract
from pipeline.tables import Labels, PoolTable
from pipeline.tasks import classification
from tests.flows.conftest import PLAIN, TINY, ready_round
from tests.flows.rounds import learn
from tests.flows.words import regions_of

TOML = """\
name = "bars"
pool = "{pool}"
classes = ["across", "down"]
folder = "{folder}"
budget = 100
audit_size = 6
seed_set_size = 10
query_size = 5
{extra}

[model]
image_size = 12
channels = 1
{model}

[members]
ensemble = 1
"""


def bars(number):
    """A picture of 400 to 550 counts, whose class is where its bars run."""
    draw = np.random.default_rng(number)
    y, x = np.mgrid[:32, :32]
    values = 400 + 150 * ((x if number % 2 else y) // 8 % 2) + draw.normal(0, 20, (32, 32))
    return Image.fromarray(values.astype(np.uint16))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        bars(number).save(folder / f"{number:02d}.png")
    rows = [{"uri": f"{n:02d}.png", "label": ("across", "down")[n % 2] if n < 20 else None} for n in range(40)]
    pd.DataFrame(rows).to_csv(folder / "images.csv", index=False)
    return folder


@pytest.fixture
def open_work(images, tmp_path):
    """Open a campaign on the images, with its pool indexed and its ranges written."""

    def open_one(extra="", model=PLAIN, pool="images.csv"):
        file = images / "campaign.toml"
        file.write_text(TOML.format(pool=pool, folder=tmp_path / "campaign", extra=extra, model=model))
        settings = load_settings(file)
        tool, tracker = MemoryTool(settings.classes), MemoryTracker()
        work = OpenCampaign(settings, Campaign(settings.folder), tool=tool, tracker=tracker)
        work.folder.write(CAMPAIGN, resolved(settings))
        refresh_pool(work)
        return work

    return open_one


class TestRanges:
    def test_are_told_when_they_are_made_and_never_again(self, open_work):
        work = open_work()
        (note,) = settle_pixel_ranges(work)
        (known,) = work.reading.ranges
        assert note == (
            f"Pixels of 16-bit grey: {known.low:g} to {known.high:g} become black to white, by 40 images; this stays "
            "so in all rounds"
        )
        assert settle_pixel_ranges(work) == ()
        assert work.reading == Reading((known,), 2.0, Objects())

    def test_stay_as_they_are_whatever_comes_later(self, open_work, images):
        work = open_work(pool=".")
        settle_pixel_ranges(work)
        written = work.folder.path_of(PIXEL_RANGES).read_bytes()
        for number in range(400):
            Image.fromarray(np.full((8, 8), 60_000 - number, np.uint16)).save(images / f"late-{number}.png")
        refresh_pool(work)
        assert len(work.pool) > 400
        assert settle_pixel_ranges(work) == ()
        assert work.folder.path_of(PIXEL_RANGES).read_bytes() == written

    def test_of_a_kind_that_comes_later_are_added(self, open_work, images):
        work = open_work(pool=".")
        settle_pixel_ranges(work)
        before = work.reading.ranges
        Image.fromarray(np.random.default_rng(0).normal(290, 5, (64, 64)).astype(np.float32)).save(images / "x.tif")
        refresh_pool(work)
        (note,) = settle_pixel_ranges(work)
        assert note.startswith("Pixels of 32-bit float: 2")
        assert work.reading.ranges[:1] == before
        assert [one.kind for one in work.reading.ranges] == ["16-bit grey", "32-bit float"]

    def test_are_none_for_a_pool_of_8_bits(self, make_work):
        work = make_work()
        assert settle_pixel_ranges(work) == ()
        assert read_json(work.folder.path_of(PIXEL_RANGES)) == {"ranges": []}
        assert work.reading == Reading(objects=Objects())

    def test_are_the_same_whatever_the_files_are_called(self, open_work, images, tmp_path):
        work = open_work(pool=".")
        (one,) = settle_ranges(Folder(tmp_path / "one"), work.pool, memory_gb=1)
        for path in images.glob("*.png"):
            path.rename(images / f"{99 - int(path.stem)}.png")
        refresh_pool(work)
        assert settle_ranges(Folder(tmp_path / "other"), work.pool, memory_gb=1) == (one,)

    @pytest.mark.parametrize("number", [5, 17])
    def test_come_from_the_pool_before_the_audit_set(self, open_work, tmp_path, monkeypatch, number):
        monkeypatch.setattr("flows.pixel_ranges.SAMPLED_PER_KIND", 1)
        pool = open_work().pool.table
        alone = pool["uri"].str.endswith(f"{number:02d}.png")
        pool["split"] = np.where(alone, "pool", "audit")
        found = settle_ranges(Folder(tmp_path / "one"), PoolTable(pool), memory_gb=1)
        assert found == measure_ranges(pool.loc[alone, "uri"].tolist())

    def test_and_pages_are_shown_by_status(self, open_work, images):
        frames = [Image.new("L", (16, 16), 9 * number) for number in range(4)]
        frames[0].save(images / "a.gif", save_all=True, append_images=frames[1:])
        work = open_work(pool=".")
        settle_pixel_ranges(work)
        (known,) = work.reading.ranges
        assert notes_on_pages(work.pool) == ("1 file holds several pages or frames: the first is used",)
        shown = CliRunner().invoke(app, ["status", str(work.folder.path)])
        assert shown.exit_code == 0, shown.output
        assert (
            f"Pixels of 16-bit grey: {known.low:g} to {known.high:g} become black to white, by 40 images"
            in shown.output
        )
        assert "1 file holds several pages or frames: the first is used" in shown.output
        told = json.loads(CliRunner().invoke(app, ["status", str(work.folder.path), "--json"]).output)
        assert told["pixel_ranges"] == [{"kind": "16-bit grey", "low": known.low, "high": known.high, "n_images": 40}]
        assert told["files_of_several_pages"] == 1


class TestReachAllThatReadsImages:
    """Each gives what the 8-bit copies would give."""

    def wanted(self, work, items, *, size=12, channels=1):
        loaded = load_images(items["uri"].tolist(), size=size, channels=channels, reading=work.reading)
        assert loaded.float().std() > 50
        return loaded

    def test_training_and_its_sample_of_the_pool(self, open_work):
        work = open_work()
        settle_pixel_ranges(work)
        folder = ready_round(work)
        labelled, plan = folder.read(LABELLED), work.do(plan_of, folder)
        inputs = _inputs(work.images, None, labelled.table, 1)
        assert torch.equal(inputs[torch.arange(len(inputs))], self.wanted(work, labelled.table))
        form = network_form(work.settings, plan, work.reading)
        found, candidates = work.do(cross_validate, folder), folder.read(CANDIDATES)
        lessons = _Lessons(labelled, plan, found, candidates, work.images, work.task, [], work.settings, form, 1)
        assert lessons._sample_pool().float().std() > 50

    def test_frozen_features_and_what_is_kept_of_them(self, open_work):
        work = open_work(model=TINY)
        body = frozen_body(work.settings.model, classification, n_classes=2)
        items = work.pool.table[["item_id", "uri"]]
        blind = features_of(body, items, work.settings.model, reading=work.reading)
        settle_pixel_ranges(work)
        found = features_of(body, items, work.settings.model, reading=work.reading)
        assert torch.equal(found, extract(body, self.wanted(work, items), device=body.mean.device))
        assert not torch.equal(found, blind), "what was kept without a range is not taken"

    def test_scoring(self, open_work):
        work = open_work(model=TINY)
        settle_pixel_ranges(work)
        body = frozen_body(work.settings.model, classification, n_classes=2)
        body.train_only("all")
        items = work.pool.table[["item_id", "uri"]].head(9)
        ((_, embeddings, _),) = predictions([body], items, work.settings.model, task=work.task, reading=work.reading)
        with torch.no_grad():
            torch.testing.assert_close(embeddings, body.eval().embed(self.wanted(work, items)))

    def test_the_cold_start(self, open_work):
        work = open_work()
        settle_pixel_ranges(work)
        items = work.pool.table.head(5)
        wanted = self.wanted(work, items, size=16, channels=3)
        assert torch.equal(work.images.small(items, 16), wanted.flatten(1).half() / 255)

    def test_the_audit_and_the_description_of_the_saved_model(self, open_work):
        model = PLAIN.replace("max_epochs = 2", "max_epochs = 12\nlearning_rate = 1e-2")
        work = open_work(model=model)
        settle_pixel_ranges(work)
        folder = ready_round(work)
        audit = work.pool.table.query("split == 'audit'")
        labels = ["across" if int(uri[-6:-4]) % 2 == 0 else "down" for uri in audit["uri"]]
        folder.write(AUDIT, Labels(audit[["item_id", "uri"]].assign(regions=regions_of(labels))))
        training = learn(work, folder)
        assert training.model.pixel_ranges == work.reading.ranges
        assert len(work.reading.ranges) == 1
        work.do(evaluate, folder)
        assert folder.read(METRICS).value == 1.0


class TestReplay:
    def options(self, images, tmp_path, **changes):
        rows = [{"file": f"{n:02d}.png", "label": ("across", "down")[n % 2]} for n in range(40)]
        pd.DataFrame(rows).to_csv(tmp_path / "labels.csv", index=False)
        how = {"strategies": "random", "seeds": 1, "rounds": 2, "query_size": 5, "start": 10, "workers": 1}
        return Options(out=tmp_path / "out", images=images, labels=tmp_path / "labels.csv", **how, **changes)

    def test_learns_from_12_bits_as_from_8(self, images, tmp_path):
        replay_strategies(self.options(images, tmp_path))
        curves = pd.read_parquet(tmp_path / "out" / "curves.parquet")
        assert curves["accuracy"].iloc[-1] == 1.0
        (known,) = Folder(tmp_path / "out").read(PIXEL_RANGES).ranges
        assert (known.kind, known.n_images) == ("16-bit grey", 40)

    def test_says_which_file_is_no_image(self, images, tmp_path):
        (images / "07.png").write_bytes(b"no image")
        with pytest.raises(ReplayError, match=r"07\.png: not an image: the content is of no known image format"):
            replay_strategies(self.options(images, tmp_path))


def test_a_limit_on_memory_must_be_above_nothing(open_work):
    with pytest.raises(ConfigError, match="decode_memory_gb"):
        open_work(extra="decode_memory_gb = 0")
    assert open_work(extra="decode_memory_gb = 0.5").reading.memory_gb == 0.5


def test_ranges_survive_being_written(tmp_path):
    ranges = (Range("32-bit float", -1.5, 2.25, 3), Range("16-bit grey", 0.0, 65535.0, 300))
    folder = Folder(tmp_path)
    folder.write(PIXEL_RANGES, PixelRanges(ranges))
    assert folder.read(PIXEL_RANGES).ranges == ranges
    assert read_json(tmp_path / "pixel_ranges.json") == {"ranges": [vars(one) for one in ranges]}
    assert Folder(tmp_path / "nowhere").get(PIXEL_RANGES) is None

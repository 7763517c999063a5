import json
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from flows.config import (
    CampaignSettings,
    ConfigError,
    load_place,
    load_settings,
    resolved,
    unresolved,
)
from flows.example import EXAMPLE
from pipeline.learning.settings import ALL_FROM, PseudoLabelSettings, with_own_image_size
from pipeline.networks.errors import ModelError
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.tasks import TASKS
from pipeline.training.augmentation import AUGMENTATIONS
from tests.hostile import CLASSES

GOOD = """\
name = "pets"
pool = "images"
classes = ["cat", "dog"]
budget = 100
audit_size = 20

[members]
ensemble = 3
"""


@pytest.fixture
def campaign(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "campaign.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_one_class_is_enough_where_an_image_may_have_none(campaign):
    one = GOOD.replace('["cat", "dog"]', '["tree"]')
    several = one.replace("budget", 'task = "multi_label"\nbudget')
    assert load_settings(campaign(several)).classes == ("tree",)
    with pytest.raises(ConfigError, match="asks which class an image has, and 'tree' is the only one: name another"):
        load_settings(campaign(one))


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_manifest_of_positives_alone_is_refused_where_a_label_is_the_whole_answer(campaign, task):
    told = GOOD.replace("budget", f'task = "{task}"\nmanifest_labels = "positives_only"\nbudget')
    with pytest.raises(
        ConfigError, match=rf"positives_only' needs a task .*, and task = '{task}' takes a label as the"
    ):
        load_settings(campaign(told))
    several = told.replace(task, "multi_label")
    assert load_settings(campaign(several)).manifest_labels == "positives_only"


@pytest.mark.parametrize("task", ["classification", "multi_label"])
def test_budget_in_regions_is_refused_where_people_mark_none(campaign, task):
    told = GOOD.replace("budget", f'task = "{task}"\nbudget_in = "regions"\nbudget', 1)
    with pytest.raises(
        ConfigError, match=rf"line 5: budget_in: 'regions' needs .*, and task = '{task}' asks for classes of whole"
    ):
        load_settings(campaign(told))
    for marking in ("detection", "segmentation"):
        assert load_settings(campaign(told.replace(task, marking))).budget_in == "regions"
    with pytest.raises(ConfigError, match="'boxes'"):
        load_settings(campaign(told.replace("regions", "boxes")))


def test_class_that_reads_like_an_open_label_is_refused(campaign):
    with pytest.raises(ConfigError, match=r"no class can be called 'cat\|\?'"):
        load_settings(campaign(GOOD.replace('"cat"', '"cat|?"')))
    assert load_settings(campaign(GOOD.replace('"cat"', '"?"'))).classes == ("?", "dog")


def test_example_that_init_writes_is_a_valid_campaign(campaign):
    settings = load_settings(campaign(EXAMPLE))
    assert settings.classes == ("cat", "dog")
    assert settings.members.n_members == 3


@pytest.mark.parametrize("setting", ["batch_size", "reduction"])
def test_the_example_names_the_tasks_whose_own_default_is_another(setting):
    after = EXAMPLE.partition(f"\n# {setting} = ")[2]
    told = re.split(r"\n(?! )", after)[0]
    shown = told.split()[0].strip('"')
    others = {name: str(getattr(task, setting)) for name, task in TASKS.items()}
    assert {name for name in others if name in told} == {name for name in others if others[name] != shown}


def test_defaults_that_the_example_shows_are_the_defaults(campaign):
    without_default = (
        *("weights", "patience", "instructions", "close_after", "schedule", "timezone", "project"),
        *("command", "on", "tracked_models", "presign_minutes", "workers", "ray_address"),
        *(
            "target_accuracy",
            "min_gain",
            "reduction",
            "sub_pool",
            "prefilter",
            "group",
            "max_minutes",
            "dice",
            "batch_size",
            '"old name"',
        ),
    )
    shown = "\n".join(
        line.removeprefix("# ") if line.startswith("# [") or (line.startswith("# ") and " = " in line[1:]) else line
        for line in EXAMPLE.splitlines()
        if not line.startswith(
            ("# A labelcycle", "# Relative", "# Every", "# begin ", *(f"# {name} =" for name in without_default))
        )
    )
    assert shown.count("\n# ") == 0
    assert resolved(load_settings(campaign(shown))) == resolved(load_settings(campaign(EXAMPLE)))


def test_paths_are_relative_to_the_file(campaign, tmp_path, monkeypatch):
    path = campaign(GOOD)
    monkeypatch.chdir("/")
    settings = load_settings(path)
    assert settings.pool == tmp_path / "images"
    assert settings.folder == tmp_path / ".labelcycle/campaigns/pets"


def test_sqlite_files_and_homes_in_paths_mean_one_place_wherever_a_command_is_called(campaign, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for written, meant in (
        ("sqlite:///ml.db", f"sqlite:///{tmp_path}/ml.db"),
        ("sqlite:///logs/ml.db", f"sqlite:///{tmp_path}/logs/ml.db"),
        ("sqlite:////data/ml.db", "sqlite:////data/ml.db"),
        ("sqlite:///~/ml.db", "sqlite:////home/somebody/ml.db"),
        ("https://mlflow.example.org", "https://mlflow.example.org"),
        ("local", "local"),
    ):
        path = campaign(f'{GOOD}\n[mlflow]\nuri = "{written}"\n')
        monkeypatch.chdir("/")
        assert load_settings(path).mlflow.uri == meant
    settings = load_settings(campaign(GOOD.replace('"images"', '"~/photos"')))
    assert settings.pool == Path("/home/somebody/photos")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "mac"], ids=["plain", "mark", "UTF-16", "UTF-32", "lone CR"]
)
def test_file_is_read_as_any_editor_writes_it(campaign, tmp_path, encoding):
    text = GOOD.replace("cat", "çat")
    data = text.replace("\n", "\r").encode() if encoding == "mac" else text.encode(encoding)
    (tmp_path / "campaign.toml").write_bytes(data)
    assert load_settings(tmp_path / "campaign.toml").classes == ("çat", "dog")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            GOOD.replace("cat", "çat").encode("cp1252"),
            "line 3: not UTF-8, at the byte 0xe7: the file was saved in another",
        ),
        (GOOD.encode("utf-16-le"), "NUL bytes: it is no text, or UTF-16 without a mark; save it as UTF-8"),
        (GOOD.replace('"images"', "“images”").encode(), "quotes of a word processor, “ ”; write"),
        (GOOD.replace('"images"', '"C:\\Users"').encode(), r"a path with \\ goes in single quotes"),
        (f"{GOOD}a = {'[' * 5000}{']' * 5000}\n".encode(), "too deep in one another"),
        (f"{GOOD}a = {'{a=' * 5000}1{'}' * 5000}\n".encode(), "too deep in one another"),
        (GOOD.replace("100", "1" * 5000).encode(), "a number that is too long: Exceeds the limit"),
        (GOOD.replace("100", "1" * 400).encode(), "line 4: budget: .* less than or equal to 1000000000"),
        (
            b'close_after = "' + b"9" * 400 + b'w"\n' + GOOD.encode(),
            "line 1: close_after: a duration is at most 100 years",
        ),
        (b'close_after = "9999w"\n' + GOOD.encode(), "line 1: close_after: a duration is at most 100 years"),
        (b"feature_cache_gb = inf\n" + GOOD.encode(), "line 1: feature_cache_gb: .* less than or equal"),
        (GOOD.replace("images", "a\\u0000b").encode(), "no path holds a NUL character"),
        (b"#" * 10_000_001, "more than 10,000,000 bytes"),
        (GOOD.replace('"cat"', ", ".join(f'"c{n}"' for n in range(10_000))).encode(), "at most 1,000, .* got 10,001"),
    ],
    ids=range(14),
)
def test_file_that_cannot_be_taken_is_told_by_its_cause_in_no_time(tmp_path, data, told):
    (tmp_path / "campaign.toml").write_bytes(data)
    began = perf_counter()
    with pytest.raises(ConfigError, match=told) as caught:
        load_settings(tmp_path / "campaign.toml")
    assert len(str(caught.value)) < 500
    assert perf_counter() - began < 10


def test_code_of_a_network_of_ones_own_runs_only_when_a_network_is_built(campaign, tmp_path, monkeypatch):
    (tmp_path / "code_of_mine.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('was_run').touch()\nfrom torch import nn\n"
        "def network():\n    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))\n"
        "    net.preprocessing = {'image_size': 96}\n    return net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = f'{GOOD}\n[model]\nname = "code_of_mine:network"\nweights = "factory"\n'
    settings = load_settings(campaign(text))
    assert not (tmp_path / "was_run").exists()
    assert with_own_image_size(settings.model).image_size == 96
    assert (tmp_path / "was_run").exists()
    asked = load_settings(campaign(f"{text}image_size = 64\n"))
    assert with_own_image_size(asked.model).image_size == 64


@pytest.mark.parametrize("name", ["os;system:thing", "module:", ":factory", "a b:c", "../module:factory", "1a:b"])
def test_name_of_a_network_of_ones_own_has_one_form(campaign, name):
    with pytest.raises(ConfigError, match=r"a network of your own is named package\.module:factory"):
        load_settings(campaign(f'{GOOD}\n[model]\nname = "{name}"\n'))


def test_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="no such campaign file; `labelcycle init"):
        load_settings(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (("budget = 100", "bugdet = 100"), 4, "unknown key 'bugdet'; did you mean 'budget'"),
        (("ensemble = 3", "ensembel = 3"), 8, "unknown key 'members.ensembel'; did you mean 'ensemble'"),
        (("budget = 100", "budget = -1"), 4, "budget: Input should be greater than or equal to 1 (got -1)"),
        (("budget = 100", 'budget = "many"'), 4, "budget: Input should be a valid integer"),
        (
            ("audit_size = 20", "audit_size = 20\nclose_at = 1.5"),
            6,
            "close_at: Input should be less than or equal to 1",
        ),
        (
            ("audit_size = 20", 'audit_size = 20\nclose_after = "soon"'),
            6,
            "a duration is a number and a unit",
        ),
        (("audit_size = 20", 'audit_size = 20\nclose_after = "0d"'), 6, "greater than"),
        (("audit_size = 20", 'audit_size = 20\nschedule = "often"'), 6, "a cron line of five fields"),
        (("audit_size = 20", 'audit_size = 20\nschedule = "* * * * * *"'), 6, "a cron line of five fields"),
        (("audit_size = 20", 'audit_size = 20\ntimezone = "Europe/Berlim"'), 6, "did you mean 'Europe/Berlin'?"),
        (("audit_size = 20", 'audit_size = 20\ntimezone = "../../etc/passwd"'), 6, "not the name of a time zone"),
        (("audit_size = 20", 'audit_size = 20\ntimezone = ""'), 6, "not the name of a time zone"),
        (("audit_size = 20", "audit_size = 20\ntimezone = 1"), 6, "timezone: Input should be a valid string"),
        (("audit_size = 20", 'audit_size = 20\nstrategy = "topk"'), 6, "did you mean 'top_k'"),
        (("audit_size = 20", 'audit_size = 20\ntask = "clasification"'), 6, "did you mean 'classification'"),
        (("audit_size = 20", 'audit_size = 20\nacquisition = "entropie"'), 6, "did you mean 'entropy'"),
        (("audit_size = 20", 'audit_size = 20\nstrategy = "anti"'), 6, "strategy: unknown query strategy 'anti'"),
        (("audit_size = 20", "audit_size = 20\nsub_pool = 0"), 6, "sub_pool: Input should be greater"),
        (("audit_size = 20", "audit_size = 20\nprefilter = 0.5"), 6, "prefilter: Input should be greater"),
        (("audit_size = 20", "audit_size = 20\ntarget_accuracy = 95"), 6, "target_accuracy: Input should be less"),
        (("audit_size = 20", "audit_size = 20\nmin_gain = 0"), 6, "min_gain: Input should be greater"),
        (("audit_size = 20", 'audit_size = 20\ncold_start = "power"'), 6, "'coverage', 'typiclust' or 'max_herding'"),
        (
            ("audit_size = 20", 'audit_size = 20\nstrategy = "power"\nstrategy_options = { gamma = 2 }'),
            None,
            "strategy 'power' has no option 'gamma'; its options are: beta",
        ),
        (
            ("ensemble = 3", "ensemble = 3\n[model.pseudo_labels]\nthreshold = -1"),
            10,
            "model.pseudo_labels.threshold: Input should be greater",
        ),
        (
            ("ensemble = 3", "ensemble = 3\n[model.pseudo_labels]\ntreshold = 1"),
            10,
            "unknown key 'model.pseudo_labels.treshold'; did you mean 'threshold'",
        ),
        (("ensemble = 3", 'ensemble = 3\n[model]\nname = "torchvision:resnet81"'), 10, "resnet18"),
        (("ensemble = 3", 'ensemble = 3\n[model]\naugmentation = "digts"'), 10, "did you mean 'digits'"),
        (("ensemble = 3", "ensemble = 3\n[model]\nchannels = 2"), 10, "channels: Input should be 1 or 3"),
        (("ensemble = 3", "ensemble = 3\n[model]\nmax_minutes = 0"), 10, "max_minutes: Input should be greater than 0"),
        (("ensemble = 3", 'ensemble = 3\n[renamed]\ncat = "dog"'), None, "'cat' is still one of the classes"),
        (("ensemble = 3", 'ensemble = 3\n[renamed]\nlion = "tiger"'), None, "'tiger', which is not one of the classes"),
        (("ensemble = 3", 'ensemble = 3\n[renamed]\na = "b"\nb = "a"'), None, "'b', which is not one of the classes"),
        (("ensemble = 3", 'ensemble = 3\n[model]\ntrain = "head"'), 9, 'train = "head" keeps random weights for ever'),
        (
            ("ensemble = 3", 'ensemble = 3\n[model]\nname = "small_cnn"\nweights = "DEFAULT"'),
            9,
            "name = 'small_cnn' has no published weights",
        ),
        (
            ("ensemble = 3", 'ensemble = 3\n[model]\ntrain = "head"\nweights = "DEFAULT"\nstart = "scratch"'),
            9,
            'train = "head" keeps random weights for ever',
        ),
        (
            ("ensemble = 3", 'ensemble = 3\n[model]\ntrain = "head"\nweights = "DEFAULT"\nstart = "previous"'),
            9,
            'take start = "previous" away',
        ),
        (
            ("ensemble = 3", 'ensemble = 3\n[model]\nweights = "mine/nowhere.pt"'),
            10,
            "model.weights: there is no file 'mine/nowhere.pt' in /",
        ),
        (("ensemble = 3", "ensemble = 3\n[model]\npatience = 0"), 10, "patience: Input should be greater"),
        (("ensemble = 3", "ensemble = 3\n[model]\nimage_size = 4"), 10, "image_size: Input should be greater"),
        (
            ("ensemble = 3", 'ensemble = 3\nviews = 2\n[model]\naugmentation = "none"'),
            None,
            "views are augmented images, and augmentation is none",
        ),
        (
            (
                "audit_size = 20",
                'audit_size = 20\nbalance_classes = true\nstrategy = "weighted_k_center"\n'
                "strategy_options = { max_class_share = 0.5 }",
            ),
            None,
            "take max_class_share away",
        ),
        (("ensemble = 3", 'ensemble = 3\n[mlflow]\nuri = "./mlruns"'), 10, "uri: "),
        (("ensemble = 3", 'ensemble = 3\n[label_studio]\nurl = "example.org"'), 10, "url: "),
        (("audit_size = 20", 'audit_size = 20\nfolder = "s3://bucket/campaign"'), 6, "must be on a disk"),
        (('"cat", "dog"', '"cat", "hot  dog"'), 3, "classes"),
        (('name = "pets"', 'name = "Pets!"'), 1, "name: String should match pattern"),
        (('"cat", "dog"', '"cat", "cat"'), None, "classes must be distinct, repeated: cat"),
        (('"cat", "dog"', '"cat", " dog"'), 3, "classes: a class name is not empty and has single spaces inside only"),
        (('"cat", "dog"', '"cat", ""'), 3, "classes: a class name is not empty"),
        (('"cat", "dog"', '"cat", "a\xa0b"'), 3, "must not hold U+00A0 NO-BREAK SPACE, which nobody can see"),
        (('"cat", "dog"', '"cat", "a\u200bb"'), 3, "must not hold U+200B ZERO WIDTH SPACE"),
        (('"cat", "dog"', '"cat", "a\u202eb"'), 3, "must not hold U+202E RIGHT-TO-LEFT OVERRIDE"),
        (('"cat", "dog"', '"cat", "a\\u001bb"'), 3, "must not hold U+001B"),
        (('"cat", "dog"', '"cat", "Cat"'), 3, "'cat' and 'Cat' differ only in capitals. People and other programs"),
        (('"cat", "dog"', '"fish", "\ufb01sh"'), 3, "U+FB01 LATIN SMALL LIGATURE FI"),
        (('"cat", "dog"', '"caf\xe9", "cafe\u0301"'), None, "classes must be distinct, repeated: caf\xe9"),
        (("audit_size = 20", "audit_size = 90"), None, "does not pay for round 0, which asks for"),
        (('"cat", "dog"]', '"cat"'), None, "not valid TOML"),
        (("ensemble = 3", "ensemble = 1\n[oops]"), 9, "unknown key 'oops'"),
    ],
)
def test_wrong_setting_fails_with_its_line_and_what_is_allowed(campaign, change, line, message):
    assert change[0] in GOOD
    path = campaign(GOOD.replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert message in str(caught.value)
    assert (f"{path}, line {line}: " if line else str(path)) in str(caught.value)


@pytest.mark.parametrize("names", [CLASSES[:40], CLASSES[40:]])
def test_classes_of_any_name_that_people_can_see_are_taken(campaign, names):
    listed = f"classes = {json.dumps(names, ensure_ascii=False)}"
    assert load_settings(campaign(GOOD.replace('classes = ["cat", "dog"]', listed))).classes == names


def test_class_is_the_same_in_whatever_form_its_letters_are_written(campaign):
    settings = load_settings(campaign(GOOD.replace('"dog"', '"cafe\u0301"')))
    assert settings.classes == ("cat", "caf\xe9")


def test_folder_of_a_campaign_is_found_whatever_else_is_in_its_file(campaign):
    for text in (GOOD, 'folder = "elsewhere"\n' + GOOD):
        path = campaign(text)
        assert load_place(path).folder == load_settings(path).folder
        assert (
            load_place(campaign(text + 'a_setting = "that nobody knows"')).folder
            == load_settings(campaign(text)).folder
        )
    with pytest.raises(ConfigError, match="line 1: name: "):
        load_place(campaign('name = "Ä"\n'))


def test_folder_whose_name_is_not_utf8_is_refused(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "campaign.toml").write_text(GOOD)
    with pytest.raises(ConfigError, match="is not UTF-8: rename the folder"):
        load_settings(folder / "campaign.toml")


def test_network_that_nobody_knows_is_told_without_a_word_on_its_size(campaign):
    with pytest.raises(ConfigError, match="near: ") as caught:
        load_settings(campaign(GOOD + '[model]\nname = "torchvision:resnet81"\n'))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        ("", 224),
        ('name = "small_cnn"', 28),
        ('name = "small_cnn"\nimage_size = 40', 40),
        ('name = "torchvision:efficientnet_b3"\nweights = "IMAGENET1K_V1"', 300),
    ],
)
def test_size_of_the_images_is_that_of_the_weights_if_nobody_says_another(campaign, lines, size):
    assert load_settings(campaign(f"{GOOD}[model]\n{lines}\n")).model.image_size == size


@pytest.mark.parametrize(
    ("lines", "all_from"),
    [
        ("", 50),
        ('augmentation = "natural"', 50),
        ('augmentation = "digits"', 1),
        ('augmentation = "none"', 1),
        ("all_from = 30", 30),
    ],
)
def test_heads_of_photographs_are_alone_for_longer(campaign, lines, all_from):
    assert load_settings(campaign(f"{GOOD}[model]\n{lines}\n")).model.all_from == all_from


def test_each_augmentation_has_its_labels_per_class():
    assert ALL_FROM.keys() == AUGMENTATIONS.keys()


def test_members_are_the_product_of_all_that_is_on(campaign):
    lines = "ensemble = 3\nswag = 2\nviews = 5\nlaplace = 7\nmc_dropout = 11"
    members = load_settings(campaign(GOOD.replace("ensemble = 3", lines))).members
    assert (members.n_networks, members.n_members) == (6, 3 * 2 * 5 * 7 * 11)


def test_login_in_an_address_is_refused_and_not_repeated(campaign):
    for section, key in (("label_studio", "url"), ("mlflow", "uri")):
        with pytest.raises(ConfigError, match="an address must not hold a login") as caught:
            load_settings(campaign(f'{GOOD}[{section}]\n{key} = "https://bob:hunter2@example.org"\n'))
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("pool", "wanted"),
    [
        ("s3://key:hunter2@bucket/pool", "pool: an address must not hold a login"),
        ("s3://bucket/a.csv?X-Amz-Signature=hunter2", "pool: an address must not hold a signature"),
        ("https://host/a.csv?token=hunter2", "pool: an address must not hold a signature"),
        ("hdfs://hunter2/pool", "pool: must be a path, or an address such as s3://bucket/folder"),
        ("s3://", "pool: must name a bucket"),
    ],
)
def test_wrong_address_of_a_pool_is_refused_and_not_repeated(campaign, pool, wanted):
    with pytest.raises(ConfigError, match=re.escape(wanted)) as caught:
        load_settings(campaign(GOOD.replace('pool = "images"', f'pool = "{pool}"')))
    assert "hunter2" not in str(caught.value)


def test_pool_is_a_path_or_an_address_and_stays_so_in_the_folder(campaign):
    for written, wanted in (("S3://bucket/a b/", "s3://bucket/a b"), ("images", None)):
        settings = load_settings(campaign(GOOD.replace('pool = "images"', f'pool = "{written}"')))
        assert settings.pool == wanted or (isinstance(settings.pool, Path) and wanted is None)
        assert unresolved(resolved(settings)).pool == settings.pool


VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**62), 2**62),
        st.floats(allow_nan=True),
        st.text(max_size=9),
        st.sampled_from(["cat", "auto", "1 day", "local", "a:b", "", "-1 d", "1e999 days", "../..", "\0", "parent"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=6,
)


def paths_of(model: type[BaseModel], *above: str) -> Iterator[tuple[str, ...]]:
    """The path of each setting, through the sections."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from paths_of(kind, *above, name)
        yield (*above, name)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed=st.dictionaries(st.sampled_from(sorted(paths_of(CampaignSettings))), VALUES, min_size=1, max_size=3))
def test_any_campaign_file_is_read_or_refused_in_words(campaign, changed):
    values = tomllib.loads(GOOD)
    for (*sections, name), value in sorted(changed.items()):
        place = values
        for section in sections:
            place[section] = place = place[section] if isinstance(place.get(section), dict) else {}
        place[name] = value
    read_or_refused(campaign(tomli_w.dumps(values)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(), st.lists(st.sampled_from([*GOOD.splitlines(), "[", "]]", '"""', "a.b = ", "= 1"]))))
def test_any_text_is_read_as_a_campaign_file_or_refused_in_words(campaign, text):
    read_or_refused(campaign(text if isinstance(text, str) else "\n".join(text)))


def read_or_refused(file: Path) -> None:
    with suppress(ConfigError, ModelError):  # their text is for people
        load_settings(file)


def test_acquisition_that_compares_members_needs_two(campaign):
    text = GOOD.replace("ensemble = 3", "ensemble = 1").replace(
        "audit_size = 20", 'audit_size = 20\nacquisition = "bald"'
    )
    with pytest.raises(ConfigError, match="needs at least two"):
        load_settings(campaign(text))
    assert load_settings(campaign(text + "mc_dropout = 20")).members.n_members == 20


@pytest.mark.parametrize("strategy", sorted(name for name, row in STRATEGIES.items() if row.compares_members))
def test_strategy_that_compares_members_needs_two(campaign, strategy):
    text = GOOD.replace("ensemble = 3", "ensemble = 1").replace(
        "audit_size = 20", f'audit_size = 20\nstrategy = "{strategy}"'
    )
    with pytest.raises(ConfigError, match=f"strategy = '{strategy}' measures how members disagree"):
        load_settings(campaign(text))


def test_threshold_of_pseudo_labels_decays_to_nothing():
    how = PseudoLabelSettings(threshold=0.05, decay=0.02)
    assert [how.threshold_in(number) for number in (0, 1, 2, 3)] == pytest.approx([0.05, 0.03, 0.01, 0.0])
    assert PseudoLabelSettings().threshold_in(0) == 0


def test_every_error_of_a_file_is_told_at_once(campaign):
    with pytest.raises(ConfigError) as caught:
        load_settings(campaign(GOOD.replace("budget", "bugdet").replace("ensemble", "ensembel")))
    assert "line 4" in str(caught.value)
    assert "line 8" in str(caught.value)


def test_missing_key_is_named(campaign):
    with pytest.raises(ConfigError, match="'classes' is missing"):
        load_settings(campaign(GOOD.replace('classes = ["cat", "dog"]\n', "")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3d", timedelta(days=3)), ("1.5h", timedelta(minutes=90)), ("30m", timedelta(minutes=30))],
)
def test_duration_is_read_with_its_unit(campaign, text, expected):
    settings = load_settings(campaign(GOOD.replace("audit_size = 20", f'audit_size = 20\nclose_after = "{text}"')))
    assert settings.close_after == expected


@pytest.mark.parametrize("rule", ["parent", "'^(.+)_frame\\d+'"])
def test_group_rule_is_read(campaign, rule):
    quoted = rule if rule.startswith("'") else f'"{rule}"'
    settings = load_settings(campaign(EXAMPLE.replace('# group = "parent"', f"group = {quoted}")))
    assert settings.group == rule.strip("'")


def test_group_rule_without_a_part_in_brackets_is_refused_with_its_line(campaign):
    text = EXAMPLE.replace('# group = "parent"', 'group = "frame"')
    line = next(n for n, each in enumerate(text.splitlines(), start=1) if each.startswith("group"))
    with pytest.raises(ConfigError, match=rf"line {line}: group: must be 'parent', or a regular expression"):
        load_settings(campaign(text))


def test_settings_are_read_back_from_what_a_campaign_writes(campaign):
    text = GOOD.replace("\n\n", '\nstrategy = "power"\nstrategy_options = { beta = 2.0 }\nclose_after = "3d"\n\n')
    settings = load_settings(campaign(text + '[renamed]\nkitten = "cat"\npuppy = "dog"\n'))
    assert unresolved(resolved(settings)) == settings
    assert list(unresolved(resolved(settings)).renamed) == ["kitten", "puppy"]


def test_class_that_was_renamed_more_than_once_has_its_last_name(campaign):
    settings = load_settings(campaign(GOOD + '[renamed]\nkitten = "kitty"\nkitty = "cat"\npuppy = "dog"\n'))
    assert settings.former_classes == {"kitten": "cat", "kitty": "cat", "puppy": "dog"}

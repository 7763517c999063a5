"""The steps of a round as a whole: what each reads is there, is what it expects, and needs no folder and no server."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch

from connectors.annotation import Question
from connectors.images.reading import WHOLE
from connectors.memory import MemoryTool
from flows import artefacts
from flows.artefacts import LABELLED_EMBEDDINGS, MEMBERS, ROUND_ARTEFACTS, SCORES, SECONDS, Artefact
from flows.campaign import GIVEN, OpenCampaign
from flows.config import CampaignSettings
from flows.folder import RoundFolder
from flows.images import PoolImages
from flows.records import Stability
from flows.round import work_on
from flows.step import Step
from flows.steps import plan as steps_plan
from flows.steps.collect import close, collect, look
from flows.steps.evaluate import evaluate
from flows.steps.labels import gather_labels, list_candidates, review_labels
from flows.steps.plan import begin, look_ahead, plan
from flows.steps.push import begin_push, push
from flows.steps.score import embed_labelled, forget_passing, score_shard
from flows.steps.select import compare_with_half, select, select_first
from flows.steps.track import draw_confusion, log_summary, start_tracking, summarise, track_model
from flows.steps.train import cross_validate, train, train_member
from pipeline.labels.ledger import Ledger, RoundOfLedger
from pipeline.learning.networks import new_model
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.masks import mask_to_png
from pipeline.members.predict import predict_members
from pipeline.regions import regions_to_json
from pipeline.tables import BatchTable, Labels, PoolTable, Predicted
from pipeline.tasks import classification, segmentation
from pipeline.tasks.task_type import TaskType
from pipeline.types import Ask, Counted, Region
from tests.flows.conftest import CLASSES
from tests.flows.rounds import metrics_of, training_of

ROOT = Path(__file__).parents[2]
OPENING = (begin, gather_labels, start_tracking)
ASKING = (summarise, log_summary, begin_push, push)
CLOSING = (look, start_tracking, collect, close)
LEARNING = (list_candidates, plan, cross_validate, train, evaluate, draw_confusion, review_labels, track_model)
SCORING = (look_ahead, embed_labelled, score_shard, select, compare_with_half, forget_passing)
ROUNDS = {
    "the first": (*OPENING, select_first, *ASKING, *CLOSING),
    "a later one": (*OPENING, *LEARNING, *SCORING, *ASKING, *CLOSING),
    "the last": (*OPENING, *LEARNING, look_ahead, select, compare_with_half, forget_passing, *ASKING, *CLOSING),
    "one with another tracker": (
        *OPENING,
        *LEARNING,
        *SCORING,
        *ASKING,
        look,
        start_tracking,
        track_model,
        log_summary,
    ),
}
"""The steps of kinds of rounds, in the order of `advance`, `go_on` and `finish`; the last asks for nothing."""
PIECES = (train_member,)
"""Parts of a step, as workers elsewhere do them."""
MAKERS = {MEMBERS.name: train, SCORES.name: score_shard}
"""What is written through a handle and is not the result of a step, and the step that writes it."""
EMPTY_AT_THE_END = {SCORES.name, LABELLED_EMBEDDINGS.name}
"""What the last round does not write; a step that has a handle of one finds nothing there."""
PASSED: Mapping[str, set[str]] = {
    "start_tracking": {"flow_run"},
    "score_shard": {"shard", "on_progress"},
    "log_summary": {"sentence", "warnings"},
    "push": {"address"},
}
"""Keywords that the loop gives to a step."""
HIDDEN = {"pool", "folder", "task", "workers"}
"""Settings that no step can read: to a step these are the table, the folder of the round, a task type and who works."""
STEPS = tuple(dict.fromkeys(one for steps in ROUNDS.values() for one in steps))


def hints_of(one: Step[Any]) -> dict[str, Any]:
    return get_type_hints(one.function)


def without_none(hint: Any) -> Any:
    """The record of a parameter that may be None."""
    if get_origin(hint) in (Union, UnionType):
        [record] = [part for part in get_args(hint) if part is not NoneType]
        return record
    return hint


def writes_of(one: Step[Any]) -> dict[str, Any]:
    """The record of each artefact that a step writes, by its annotation."""
    result = hints_of(one)["return"]
    records = get_args(result) if len(one.writes) > 1 else (result,)
    return {artefact.name: without_none(record) for artefact, record in zip(one.writes, records, strict=False)}


@pytest.mark.parametrize("kind", ROUNDS)
def test_each_artefact_that_a_step_reads_was_written_by_a_step_before(kind):
    written: set[str] = set()
    for one in ROUNDS[kind]:
        for name in one.reads:
            artefact = ROUND_ARTEFACTS[name]
            is_there = artefact.name in written or name in one.optional
            makes_it = artefact.is_handle and (artefact in one.writes or MAKERS.get(artefact.name) is one)
            may_be_empty = kind == "the last" and artefact.name in EMPTY_AT_THE_END
            assert is_there or makes_it or may_be_empty, f"{one.name} reads {artefact.name}, which nobody wrote"
        written |= {artefact.name for artefact in one.writes} | {SECONDS.name}
        written |= {name for name, maker in MAKERS.items() if maker is one}


def test_each_artefact_is_written_by_one_step_and_each_kind_of_round_is_of_the_steps_that_there_are():
    makers: dict[str, set[str]] = {}
    for one in STEPS:
        for artefact in one.writes:
            makers.setdefault(artefact.name, set()).add(one.name)
    assert {name: steps for name, steps in makers.items() if len(steps) > 1} == {
        "batch.parquet": {"select", "select_first"}
    }
    in_modules = {
        value.name
        for path in (ROOT / "flows" / "steps").glob("*.py")
        for value in vars(sys.modules.get(f"flows.steps.{path.stem}", object)).values()
        if isinstance(value, Step)
    }
    assert in_modules == {one.name for one in (*STEPS, *PIECES)}


@pytest.mark.parametrize("one", STEPS, ids=lambda one: one.name)
def test_each_parameter_is_an_artefact_a_given_thing_a_setting_or_passed_by_the_loop(one):
    settings = set(CampaignSettings.model_fields) - HIDDEN
    kinds = [set(ROUND_ARTEFACTS), set(GIVEN), settings, PASSED.get(one.name, set())]
    for name in one.parameters:
        assert sum(name in kind for kind in kinds) == 1, f"{one.name}: what is {name}?"
    assert PASSED.get(one.name, set()) <= set(one.parameters)


def test_no_name_means_two_things():
    assert set(CampaignSettings.model_fields) & set(GIVEN) == HIDDEN
    kinds = [set(ROUND_ARTEFACTS), set(GIVEN), set(CampaignSettings.model_fields) - HIDDEN, *PASSED.values()]
    names = [name for kind in kinds for name in kind]
    assert len(names) == len(set(names))


def test_loop_passes_the_keywords_that_are_listed():
    files = [(ROOT / "flows" / name).read_text(encoding="utf-8") for name in ("round.py", "advance.py")]
    passed: dict[str, set[str]] = {}
    for call in ast.walk(ast.parse("\n".join(files))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "do":
            name = call.args[0]
            assert isinstance(name, ast.Name)
            passed.setdefault(name.id, set()).update(str(keyword.arg) for keyword in call.keywords)
    passed[score_shard.name] = PASSED[score_shard.name]  # in pieces, by whoever works
    assert {name: keywords for name, keywords in passed.items() if keywords} == PASSED
    assert passed.keys() == {one.name for one in STEPS}, "each step is done by the loop"


@pytest.mark.parametrize("name", ROUND_ARTEFACTS)
def test_readers_of_an_artefact_expect_what_its_writer_returns(name):
    expected = {one.name: without_none(hints_of(one)[name]) for one in STEPS if name in one.parameters}
    returned = {
        one.name: record
        for one in STEPS
        for file, record in writes_of(one).items()
        if file == ROUND_ARTEFACTS[name].name
    }
    assert len({*map(str, expected.values()), *map(str, returned.values())}) <= 1, (expected, returned)


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of a type, as far as the types of steps go."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Callable:
        return callable(value)
    if kind is Literal:
        return value in parts
    if kind in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if getattr(hint, "_is_protocol", False):
        return all(hasattr(value, name) for name in (*vars(hint), *hint.__annotations__) if not name.startswith("_"))
    if kind is None:
        return hint in type(value).__mro__ or (hint is float and isinstance(value, int))
    if issubclass(kind, Mapping):
        return isinstance(value, kind) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    return isinstance(value, kind) and all(fits(each, parts[0]) for each in value)


def test_a_value_fits_its_own_type_alone():
    assert fits({"a": 1.0}, dict[str, float])
    assert not fits({"a": "b"}, dict[str, float])
    assert fits(["a"], Sequence[str])
    assert not fits([1], Sequence[str])
    assert fits(classification, TaskType)
    assert not fits(classification.loss, TaskType)
    assert fits("images", Counted)
    assert not fits("boxes", Counted)
    assert fits(None, Stability | None)
    assert not fits(None, Stability)


@pytest.fixture
def done(make_work, monkeypatch):
    """A campaign in memory on its way to round 2, and the steps that each of its rounds has run."""
    work = make_work(members="mc_dropout = 2", model="dropout = 0.1\n")
    names: dict[int, list[str]] = {}
    do, do_piece = OpenCampaign.do, OpenCampaign.do_piece

    def note(one, folder, more):
        known = names.setdefault(folder.number, [])
        if not known or known[-1] != one.name:  # shards of scores are one
            known.append(one.name)
        for name, value in more.items():
            assert fits(value, hints_of(one)[name]), (one.name, name)

    def note_step(self, one, folder, **more):
        note(one, folder, more)
        return do(self, one, folder, **more)

    def note_piece(self, one, folder, piece, on_progress):
        note(one, folder, {**piece, "on_progress": on_progress})
        do_piece(self, one, folder, piece, on_progress)

    monkeypatch.setattr(OpenCampaign, "do", note_step)
    monkeypatch.setattr(OpenCampaign, "do_piece", note_piece)
    for _ in range(3):
        assert work_on(work).kind == "asked"
        for task in work.tool.served():
            work.tool.answer(task.ask, CLASSES[int(Path(task.uri).stem) % 3], annotator="ann")
    return work, names


def test_rounds_run_the_steps_that_are_listed_and_each_gets_what_its_parameters_ask_for(done):
    work, names = done
    assert names[0] == [one.name for one in ROUNDS["the first"]]
    assert names[1] == [one.name for one in ROUNDS["a later one"]]
    folder = work.folder.round(1)
    assert {name for name, artefact in ROUND_ARTEFACTS.items() if not folder.has(artefact)} == set()
    for one in STEPS:
        hints = hints_of(one)
        for name in set(one.parameters) - PASSED.get(one.name, set()):
            artefact, given = ROUND_ARTEFACTS.get(name), GIVEN.get(name)
            value = (
                folder.read(artefact) if artefact else given(work, folder) if given else getattr(work.settings, name)
            )
            assert fits(value, hints[name]), f"{one.name} wants {name} as {hints[name]}, and gets {type(value)}"


def test_record_that_is_written_again_makes_the_same_file(done, tmp_path):
    work, _ = done
    folder, copy = work.folder.round(1), RoundFolder(tmp_path / "0001")
    for artefact in ROUND_ARTEFACTS.values():
        if not artefact.is_handle:
            copy.write(artefact, folder.read(artefact))
            assert copy.path_of(artefact).read_bytes() == folder.path_of(artefact).read_bytes(), artefact.name


def names_in_strings(source: str) -> set[str]:
    """The artefacts whose file's name stands in a string of the code; docstrings are no code."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]
    joined = [
        node.right.value
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant)
    ]
    files = {name for name in FILE_NAMES if "." in name}
    found = {name for name in files for text in texts if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text)}
    return found | ((FILE_NAMES - files) & set(joined))


FILE_NAMES = {value.name for value in vars(artefacts).values() if isinstance(value, Artefact)}
DECLARE = {"flows/artefacts.py", "connectors/member_files.py", "connectors/score_files.py"}
ELSEWHERE = {
    # a pool that is walked may hold the folder of a campaign
    "connectors/image_folder/listing.py": {"campaign.json", "pool.parquet", "pool_notes.json"},
    # what a person can delete to ask again
    "connectors/label_studio/project.py": {"pushed.json"},
}
"""Connectors that know a file of a campaign, of which they can import no name."""


def test_name_in_a_string_is_found():
    assert names_in_strings('x = folder / "plan.json"') == {"plan.json"}
    assert names_in_strings('x = f"see {folder}/plan.json"; y = folder / "scores"') == {"plan.json", "scores"}
    assert names_in_strings('"""Of plan.json."""\nx = "scores"') == set()
    assert names_in_strings('x = "my-plan.json"') == set()


def test_no_other_module_spells_the_name_of_an_artefact():
    assert len(FILE_NAMES) > len(ROUND_ARTEFACTS)
    spelled = {}
    for room in ("flows", "connectors"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            found = names_in_strings(path.read_text(encoding="utf-8"))
            if found and name not in DECLARE and not name.startswith("flows/replay/"):
                spelled[name] = found
    assert spelled == ELSEWHERE


def test_name_of_an_artefact_is_that_of_no_other():
    values = {id(value): value.name for value in vars(artefacts).values() if isinstance(value, Artefact)}
    assert len(set(values.values())) == len(values)


class Networks:
    """Networks that are in no file."""

    def __init__(self, networks):
        self.networks, self.is_clear = networks, False

    def clear_scratch(self):
        self.is_clear = True

    def load(self, _form, _names, _device):
        return self.networks


class Images:
    """Images that are in no file, by item id."""

    def __init__(self, pixels):
        self.pixels = pixels

    def predict(self, networks, items):
        images = torch.stack([self.pixels[item_id] for item_id in items["item_id"]])
        yield predict_members(networks, images, task=classification, seed=0)


def labels_of(targets: Sequence[int], *, source: str = "manifest") -> Labels:
    """Labels on items "0", "1", ..."""
    given = [classification.read_label(CLASSES[target]) for target in targets]
    rows = [{"item_id": str(place), "regions": regions_to_json(regions)} for place, regions in enumerate(given)]
    return Labels(pd.DataFrame(rows, columns=["item_id", "regions"]).assign(source=source, group=None))


MODEL = ModelSettings(name="small_cnn", image_size=12, channels=1)


def test_evaluate_needs_no_folder(make_work):
    model = new_model(MODEL, classification, n_classes=3, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = {str(n): torch.randint(0, 256, (1, 12, 12), generator=generator, dtype=torch.uint8) for n in range(9)}
    audit, networks = labels_of([0, 1, 2] * 3), Networks([model, model])
    how = {"task": classification, "model": MODEL, "classes": CLASSES}
    predicted, metrics = evaluate.function(audit, training_of(), networks, images=Images(pixels), **how)
    with torch.no_grad():
        guesses = model(torch.stack(list(pixels.values()))).argmax(dim=1)
    assert metrics.n == 9
    assert metrics.value == pytest.approx(float((guesses == audit.targets(classification, CLASSES)).float().mean()))
    assert torch.equal(predicted.values[:, 0].argmax(dim=1), guesses)
    assert networks.is_clear
    nothing, none = evaluate.function(labels_of([]), training_of(), networks, images=Images({}), **how)
    assert (len(nothing), none) == (0, None)


def test_image_whose_mask_is_probably_wrong_is_listed_once_with_the_place():
    names = ("cat", "dog")
    rasters = np.zeros((30, 8, 8), dtype=bool)
    rasters[:, :, 4:] = True
    given = [(Region("mask", names[image % 2], mask=mask_to_png(one)),) for image, one in enumerate(rasters)]
    right = segmentation.targets(given, names)
    wrong = {"3": "cat", "8": "dog"}
    for item_id, name in wrong.items():
        given[int(item_id)] = (Region("mask", name, mask=mask_to_png(rasters[0])),)
    rows = [{"item_id": str(place), "regions": regions_to_json(regions)} for place, regions in enumerate(given)]
    labels = Labels(pd.DataFrame(rows).assign(source="annotators", group=None))
    cells = right[:, 16::32, 16::32].flatten(1).long()
    noise = torch.randn(30, 64, 3, generator=torch.Generator().manual_seed(0))
    found = Predicted.made(labels, 6 * torch.nn.functional.one_hot(cells, 3) + noise, phase="head")
    pool = PoolTable(pd.DataFrame({"item_id": labels.item_ids, "uri": labels.item_ids}))
    review, suspicious = review_labels.function(
        labels, Labels(labels.table[:0]), found, Predicted.none(), pool, Ledger(), task=segmentation, classes=names
    )
    assert set(suspicious["item_id"]) == set(wrong)
    assert suspicious["item_id"].is_unique
    assert review.n_listed == 2
    for row in suspicious.itertuples():
        said, suggested = (text.split(" at ") for text in (row.label, row.suggested))
        assert (said[0], suggested[0]) == (wrong[row.item_id], {"cat": "dog", "dog": "cat"}[wrong[row.item_id]])
        assert said[1] == suggested[1]
        across, down = (int(number) for number in re.findall(r"(\d+) %", said[1]))
        assert across > 50
        assert 0 < down < 100


def test_predictions_of_maps_are_kept_as_the_numbers_that_they_are(tmp_path):
    values = torch.randn(20, 784, 4, generator=torch.Generator().manual_seed(0))
    path = tmp_path / artefacts.OUT_OF_FOLD.name
    artefacts.OUT_OF_FOLD.write(path, Predicted.made(labels_of([0, 1] * 10), values, phase="head", epochs=3))
    kept = artefacts.OUT_OF_FOLD.read(path)
    assert kept.table["values"].map(lambda row: row.nbytes).sum() == values.nbytes
    assert torch.equal(kept.values, values)
    assert (kept.phase, kept.epochs) == ("head", 3)


@pytest.mark.parametrize(("n_labels", "phase"), [(12, "head"), (150, "all")])
def test_plan_needs_no_folder(n_labels, phase):
    model = ModelSettings(
        name="tests.flows.tiny:tiny_network", weights="factory", image_size=12, channels=1, all_from=50, max_epochs=1
    )
    pool = PoolTable(pd.DataFrame({"item_id": [*"abcde"], "uri": "", "set_aside_reason": None}))
    planned = plan.function(
        labels_of([0] * n_labels),
        labels_of([]),
        range(5),
        images=PoolImages(pool, model, classification, WHOLE, cache_gb=5 * 256 / 1e9),
        earlier=(),
        task=classification,
        model=model,
        members=MemberSettings(ensemble=1),
        classes=CLASSES,
        round_number=1,
    )
    assert (planned.phase, planned.wanted) == (phase, phase)
    assert set(planned.minutes) == ({"all"} if phase == "all" else set())
    assert (planned.text is None) == (phase == "head")
    assert planned.features is None


def test_rounds_of_heads_build_the_network_once_to_know_how_large_its_features_are(monkeypatch):
    given = {"name": "tests.flows.tiny:tiny_network", "weights": "factory", "image_size": 12, "channels": 1}
    model = ModelSettings(**given, train="head", dropout=0.375)  # of no other test
    pool = PoolTable(pd.DataFrame({"item_id": [*"abcde"], "uri": "", "set_aside_reason": None}))
    build, built = steps_plan.frozen_body, []
    monkeypatch.setattr(steps_plan, "frozen_body", lambda *args, **how: built.append(args) or build(*args, **how))
    for round_number, cache_gb in ((1, 1.0), (2, 1e-9)):
        planned = plan.function(
            labels_of([0, 1, 2]),
            labels_of([]),
            range(5),
            images=PoolImages(pool, model, classification, WHOLE, cache_gb=cache_gb),
            earlier=(),
            task=classification,
            model=model,
            members=MemberSettings(ensemble=1),
            classes=CLASSES,
            round_number=round_number,
        )
        assert (planned.features is None) == (cache_gb == 1.0)
    assert len(built) == 1


def test_collect_needs_no_folder():
    tool = MemoryTool(CLASSES)
    asks = {name: Ask(name, 0, "query") for name in "abcd"}
    questions = [Question(asks[name], f"/{name}.png", rank, reason="a check") for rank, name in enumerate(asks)]
    pushed = tool.push(questions, model_version="none", asked={})
    ledger = Ledger([RoundOfLedger(0, pushed, "memory:", "2026-11-01T12:00:00+00:00")])
    tool.answer(asks["a"], "left")
    tool.skip(asks["b"])
    del tool.tasks[pushed[asks["d"]]]
    batch = BatchTable(pd.DataFrame({"item_id": list(asks)}))

    def collect_again(known, number):
        return collect.function(known, batch, tool=tool, earlier=[], max_unused=0.5, round_number=number)

    lines, withdrawn, answers, collected = collect_again(ledger, 0)
    assert collected.mark is not None
    assert {answer.item_id: answer.outcome for answer in answers} == {"a": "labelled", "b": "skipped"}
    assert (lines, withdrawn) == ([], ["d"])
    after = Ledger([RoundOfLedger(0, pushed, "memory:", "2026-11-01T12:00:00+00:00", answers, withdrawn)])
    assert collect_again(after, 0)[2] == answers, "a run that ended before it closed the round brings in the same"
    assert collect_again(after, 1)[2] == [], "they are brought in once"
    assert (after.n_labels_paid, after.n_outstanding) == (1, 1)


def test_summarise_needs_no_folder():
    labelled, audit = labels_of([0, 1, 2], source="annotators"), labels_of([0, 1])
    pool = PoolTable(pd.DataFrame({"item_id": list("abcdef"), "set_aside_reason": [None] * 5 + ["damaged"]}))
    nothing = dict.fromkeys(("metrics", "outlook", "training", "review", "stability"))
    summary = summarise.function(
        labelled, audit, pool, Ledger(), {"train": 2.5}, **nothing, model=MODEL, budget_in="images"
    )
    assert summary.step == 3
    assert summary.metrics == {"n_labels_paid": 3, "pool_size": 5, "seconds_train": 2.5}
    told = nothing | {"metrics": metrics_of(150), "stability": Stability(0.5)}
    more = summarise.function(labelled, audit, pool, Ledger(), {}, **told, model=MODEL, budget_in="regions").metrics
    assert (more["audit_accuracy"], more["batch_kept_with_half_the_members"]) == (0.75, 0.5)
    assert more["n_regions_paid"] == 0


IN_MEMORY = """
import sys
for name in ("prefect", "mlflow", "label_studio_sdk"):
    sys.modules[name] = None  # whoever imports it fails
from pathlib import Path
from connectors.memory import MemoryTool, MemoryTracker
from flows.campaign import (OpenCampaign)
from flows.config import load_settings
from flows.folder import Campaign
from flows.round import work_on
settings = load_settings(Path(sys.argv[1]))
tool = MemoryTool(settings.classes)
work = OpenCampaign(settings, Campaign(settings.folder), tool=tool, tracker=MemoryTracker())
for _ in range(2):
    told = work_on(work)
    for task in tool.served():
        tool.answer(task.ask, settings.classes[int(Path(task.uri).stem) % 3])
print(told.round_number, told.kind)
"""


def test_rounds_in_memory_need_neither_prefect_nor_the_clients_of_servers(make_work, striped_images):
    make_work()
    code = [sys.executable, "-c", IN_MEMORY, str(striped_images / "campaign.toml")]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.stdout == "1 asked\n", done.stderr

"""The networks of a round: predictions out of fold, then the members."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from connectors.images.reading import Reading
from connectors.member_files import MemberFiles
from connectors.score_files import ItemList
from connectors.tracking import Tracker
from flows.artefacts import MEMBERS, OUT_OF_FOLD, TRAINING, json_of
from flows.config import CampaignSettings
from flows.folder import RoundFolder
from flows.images import PoolImages
from flows.progress import progress_bar
from flows.records import Member, MembersFinding, NetworkForm, Pages, Plan, Training
from flows.step import step
from flows.workers.local import Piece, Workers
from pipeline.image_rows import Images, joined
from pipeline.labels.answers import digest
from pipeline.learning.lesson import Lesson, OutOfFold, sample_pool
from pipeline.learning.networks import frozen_body
from pipeline.learning.out_of_fold import FOLDS, phase_to_cross, predict_out_of_fold, with_out_of_fold
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.learning.train import Trained, member_name, train_network, weight_draws
from pipeline.networks.classifier import Classifier
from pipeline.networks.devices import choose_device, device_name
from pipeline.networks.weights import without_last_layer
from pipeline.randomness import derive_seed
from pipeline.selection.acquisition import entropy
from pipeline.selection.pseudo_labels import choose_confident
from pipeline.tables import Labels, Predicted, class_indices
from pipeline.tasks.task_type import TaskType
from pipeline.training.fit import TrainingError
from pipeline.training.ranks import Ranks
from pipeline.types import OnProgress

RECORD = json_of("member.json", Member)
"""Of one member; its file's name has the member's number."""


class NothingToTrainOn(TrainingError):
    """The round has no usable label."""


@step(OUT_OF_FOLD, computes=True)
def cross_validate(
    labelled: Labels,
    plan: Plan,
    *,
    images: PoolImages,
    task: TaskType,
    model: ModelSettings,
    members: MemberSettings,
    classes: Sequence[str],
    seed: int,
    round_number: int,
) -> Predicted:
    """What networks predict on the labelled images that they have not seen; no row without weights."""
    targets, groups = labelled.targets(task, classes), labelled.groups
    phase = phase_to_cross(plan.phase, targets, model, task=task, groups=groups)
    if phase is None:
        return Predicted.none()
    body = frozen_body(model, task, n_classes=len(classes)) if phase == "head" else None
    inputs = _inputs(images, body, labelled.table, round_number)
    lesson = Lesson(task, len(classes), phase, inputs, targets, body, groups=groups)
    seed = derive_seed(seed, round_number, FOLDS)
    bar = nullcontext() if body is not None else progress_bar(f"round {round_number}: out of fold", unit="epochs")
    with bar as on_progress:  # heads take a moment
        crossed = predict_out_of_fold(lesson, model, seed=seed, bagging=members.bagging, on_progress=on_progress)
    return Predicted.made(labelled, crossed.logits, phase=phase, epochs=crossed.epochs)


def _inputs(images: PoolImages, body: Classifier | None, items: pd.DataFrame, round_number: int) -> Images:
    """Images, or what a frozen body makes of them."""
    if body is None:
        with progress_bar(f"round {round_number}: images", unit="images") as on_progress:
            return images.kept(items, on_progress)
    with progress_bar(f"round {round_number}: features", unit="images") as on_progress:
        return images.features(body, items, on_progress)


@step(TRAINING)
def train(
    labelled: Labels,
    plan: Plan,
    out_of_fold: Predicted,
    candidates: ItemList,
    networks: MemberFiles,
    pages: Pages,
    *,
    images: PoolImages,
    task: TaskType,
    reading: Reading,
    tracker: Tracker,
    workers: Workers,
    folder: RoundFolder,
    earlier: Sequence[RoundFolder],
    settings: CampaignSettings,
    round_number: int,
) -> Training:
    """Train the members that are not there yet; the record holds what it takes to build them again."""
    if not len(labelled):
        raise NothingToTrainOn(f"round {round_number}: no image outside the audit set has a usable label")
    how = settings.model.pseudo_labels
    threshold = how.threshold_in(round_number)
    form = network_form(settings, plan, reading)
    lessons = _Lessons(labelled, plan, out_of_fold, candidates, images, task, earlier, settings, form, round_number)
    team = _Team(workers, folder)
    lesson: Callable[[], Lesson] = cache(partial(lessons.prepare, networks))
    n_sure = 0
    with tracker.monitor(pages.run_id):
        if threshold > 0:
            most = min(how.max_count, len(labelled))
            sure = lessons.pseudo_labelled(networks.scratch, lesson, team, max_count=most)
            lesson, n_sure = partial(lessons.with_guesses, lesson, sure), len(sure)
        trained = lessons.train_members(networks, lesson, team)
    return Training(
        device=device_name(choose_device(settings.model.device)),
        n_trained_on=len(labelled),
        labelled_digest=digest(labelled.table),
        n_pseudo_labels=n_sure,
        pseudo_label_threshold=threshold,
        phase=plan.phase,
        plan=plan,
        preprocessing=trained[0].preprocessing,
        findings=tuple(_findings(trained)),
        members=tuple(trained),
        model=form,
    )


@step()
def train_member(
    labelled: Labels,
    plan: Plan,
    out_of_fold: Predicted,
    candidates: ItemList,
    networks: MemberFiles,
    *,
    images: PoolImages,
    task: TaskType,
    reading: Reading,
    earlier: Sequence[RoundFolder],
    settings: CampaignSettings,
    round_number: int,
    member: int,
    on_progress: OnProgress,
) -> None:
    """Train one member from the files of the round alone; before pseudo-labels are chosen, one that chooses them."""
    form = network_form(settings, plan, reading)
    lessons = _Lessons(labelled, plan, out_of_fold, candidates, images, task, earlier, settings, form, round_number)
    with Ranks.here().first_goes_ahead():
        lesson, files = lessons.prepare(networks), networks
        if settings.model.pseudo_labels.threshold_in(round_number) > 0:
            chosen = networks.scratch.chosen
            if chosen is None:
                files = networks.scratch
            else:
                lesson = lessons.with_guesses(lambda: lesson, chosen)
    lessons.train_member(member, files, lesson, on_progress)


def network_form(settings: CampaignSettings, plan: Plan, reading: Reading) -> NetworkForm:
    """What it takes to build the networks of a round again."""
    model = settings.model
    return NetworkForm(
        name=model.name,
        image_size=model.image_size,
        channels=model.channels,
        dropout=model.dropout,
        head=model.head,
        phase=plan.phase,
        n_classes=len(settings.classes),
        classes=list(settings.classes),
        pixel_ranges=reading.ranges,
        task=settings.task,
    )


def load_networks(training: Training, networks: MemberFiles, model: ModelSettings) -> Sequence[Classifier]:
    """The networks of a round, on the campaign's device, ready to predict."""
    return networks.load(dataclasses.asdict(training.model), training.weights, choose_device(model.device))


@dataclasses.dataclass(frozen=True)
class _Team:
    """Who trains the members of a round."""

    workers: Workers
    folder: RoundFolder


@dataclasses.dataclass(frozen=True)
class _Lessons:
    """What the networks of one round learn from, and how they are made of it."""

    labelled: Labels
    plan: Plan
    out_of_fold: Predicted
    candidates: ItemList
    images: PoolImages
    task: TaskType
    earlier: Sequence[RoundFolder]
    settings: CampaignSettings
    form: NetworkForm
    round_number: int

    def prepare(self, networks: MemberFiles) -> Lesson:
        """What the labels teach; the trunk that heads share is written."""
        model, classes, phase = self.settings.model, self.settings.classes, self.plan.phase
        body = sample = None
        if phase == "head":
            body = frozen_body(model, self.task, n_classes=len(classes))
            networks.save_trunk(body)
        elif not model.is_pretrained:
            sample = self._sample_pool()
        inputs = _inputs(self.images, body, self.labelled.table, self.round_number)
        targets, groups = self.labelled.targets(self.task, classes), self.labelled.groups
        lesson = Lesson(self.task, len(classes), phase, inputs, targets, body, pool_sample=sample, groups=groups)
        found = self.out_of_fold
        if not model.is_pretrained or found.phase is None:
            return lesson
        return with_out_of_fold(lesson, OutOfFold(found.phase, found.values, found.epochs))

    def _sample_pool(self) -> Tensor:
        """Images of the round, labelled or not, drawn from its own files, so that a round that goes on draws alike."""
        candidates = self.images.there(self.candidates.table)
        known = pd.concat([self.labelled.table[["item_id", "uri"]], candidates])
        known = known.sort_values("item_id", ignore_index=True)
        rows = sample_pool(len(known), seed=self.settings.seed, round_number=self.round_number)
        return self.images.load(known.iloc[rows.numpy()])

    def with_guesses(self, lesson: Callable[[], Lesson], guessed: pd.DataFrame) -> Lesson:
        """The lesson with the model's own guesses, given as item_id, uri and label, after its labels."""
        known = lesson()
        inputs = _inputs(self.images, known.body, guessed, self.round_number)
        targets = class_indices(guessed["label"].tolist(), self.settings.classes)
        return dataclasses.replace(
            known,
            inputs=joined(known.inputs, inputs),
            targets=torch.cat([known.targets, targets]),
            n_labels=len(known.targets),
        )

    def pseudo_labelled(
        self, scratch: MemberFiles, lesson: Callable[[], Lesson], team: _Team, *, max_count: int
    ) -> pd.DataFrame:
        """Train on the labels alone; return the candidates that the members are sure of, with their guess as label.

        The choice is in a file of its own while the round trains, so that a run that goes on after a crash goes on
        with the same; then it is thrown away with the members that made it.
        """
        if scratch.chosen is None:
            trained = self.train_members(scratch, lesson, team)
            names = [name for member in trained for name in member.weights]
            device = choose_device(self.settings.model.device)
            models = scratch.load(dataclasses.asdict(self.form), names, device)
            candidates = self.images.there(self.candidates.table)
            entropies, guesses = self._predict(models, candidates)
            threshold = self.settings.model.pseudo_labels.threshold_in(self.round_number)
            sure = choose_confident(entropies, guesses, threshold=threshold, max_count=max_count)
            labels = np.array(self.settings.classes)[guesses[sure].numpy()]
            scratch.choose(candidates.iloc[sure.numpy()][["item_id", "uri"]].assign(label=labels))
        chosen = scratch.chosen
        if chosen is None:
            raise RuntimeError("no pseudo-labels were written")
        return chosen

    def _predict(self, models: Sequence[Classifier], items: pd.DataFrame) -> tuple[Tensor, Tensor]:
        """Entropy of the mean of the networks, nats, and likeliest class `(N,)` each; the pool is held in parts."""
        entropies, guesses = [torch.empty(0)], [torch.empty(0, dtype=torch.long)]
        with progress_bar("looking for pseudo-labels", unit="images") as on_progress:
            for decisions, _, _ in self.images.predict(models, items, of_pool=True, on_progress=on_progress):
                entropies.append(entropy(decisions[:, 0]))
                guesses.append(decisions[:, 0].mean(dim=1).argmax(dim=1))
        return torch.cat(entropies), torch.cat(guesses)

    def train_members(self, networks: MemberFiles, lesson: Callable[[], Lesson], team: _Team) -> list[Member]:
        """Train every member that has no record yet; return the records."""
        learnt = cache(lesson)  # once for all members that are trained in this process

        def here(piece: Piece, on_progress: OnProgress) -> None:
            self.train_member(piece["member"], networks, learnt(), on_progress)

        records = [networks.record(index) for index in range(self.settings.members.ensemble)]
        missing = [{"member": index} for index, record in enumerate(records) if not record.exists()]
        what = f"round {self.round_number}: training"
        together = self.settings.gpus_per_network if self.plan.phase == "all" else 1  # heads take a moment
        if missing:
            team.workers.each(train_member, team.folder, missing, here, what=what, unit="epochs", together=together)
        return [RECORD.read(record) for record in records]

    def train_member(self, index: int, networks: MemberFiles, lesson: Lesson, on_progress: OnProgress) -> None:
        """Train one member; its record is written last, by one process of those that trained it."""
        name = member_name(index)
        seed = derive_seed(self.settings.seed, self.round_number, name)
        trained = self._train(name, seed, lesson, on_progress)
        if Ranks.here().is_first:
            RECORD.write(networks.record(index), self._write(name, seed, trained, networks, lesson))

    def _train(self, name: str, seed: int, lesson: Lesson, on_progress: OnProgress) -> Trained:
        how = self.settings.model
        epochs: list[Mapping[str, float]] = []

        def count_epoch(row: Mapping[str, float]) -> None:
            epochs.append(row)
            if Ranks.here().is_first:
                on_progress(len(epochs), lesson.epochs or how.max_epochs)

        return train_network(
            lesson,
            how,
            self.settings.members,
            seed=seed,
            previous=self._previous_weights(name) if how.start == "previous" else None,
            on_epoch=count_epoch,
        )

    def _write(self, name: str, seed: int, trained: Trained, networks: MemberFiles, lesson: Lesson) -> Member:
        """Write the weights of a member, and those of its draws."""
        how, members = self.settings.model, self.settings.members
        with_trunk = lesson.body is None
        weights = [networks.save(trained.model, f"{name}.pt", with_trunk=with_trunk)]
        if members.swag:
            draws = enumerate(weight_draws(trained, lesson, how, members, seed=seed))
            weights = [networks.save(draw, f"{name}-swag-{n:02d}.pt", with_trunk=with_trunk) for n, draw in draws]
        return Member(
            name=name,
            seed=seed,
            weights=tuple(weights),
            epochs=trained.fit.history,
            best_epoch=trained.fit.best_epoch,
            findings=trained.findings,
            calibration=trained.calibration,
            preprocessing=trained.model.preprocessing,
        )

    def _previous_weights(self, member: str) -> dict[str, Tensor] | None:
        """What the member of this name learnt in the last round that trained one; None in the first.

        None too where that was another network. Where the classes were others, the last layer is left out.
        """
        for folder in reversed(self.earlier):
            training = folder.get(TRAINING)
            state = None if training is None else folder.read(MEMBERS).state_of(f"{member}.pt")
            if training is not None and state is not None:
                if _shape(training.model) != _shape(self.form):
                    return None
                present = self.settings.former_classes
                is_alike = [present.get(name, name) for name in training.model.classes] == self.form.classes
                return state if is_alike else without_last_layer(state)
        return None


def _shape(form: NetworkForm) -> tuple[str, int, int, float, str]:
    """What the form of a network depends on, but for the classes."""
    return form.name, form.image_size, form.channels, form.dropout, form.head


def _findings(members: Sequence[Member]) -> list[MembersFinding]:
    """What is wrong with the members, each once, with the names of those that have it."""
    found: dict[str, MembersFinding] = {}
    for member in members:
        for finding in member.findings:
            known = found.setdefault(finding.name, MembersFinding(finding.name, finding.what, finding.advice, ()))
            found[finding.name] = dataclasses.replace(known, members=(*known.members, member.name))
    return list(found.values())

"""Testing a finished classifier on a folder of another place: a clinic that its federation has never seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict

from aiseeme_models.downstream.classification import ClassificationOptions
from aiseeme_models.downstream.metrics import ProbeScore
from aiseeme_models.downstream.tasks import downstream_tasks
from aiseeme_models.errors import InputError
from aiseeme_models.images.cache import ImageCache
from client.scanning import Scan, scan
from client.site_home import SiteHome
from client.stage_images import StageImages, labelled_rows
from federation_configs.loading import load_config
from server.assessment import assess_elsewhere
from server.global_model import load_backbone, load_classification
from server.model_manifest import MODEL_FOLDER, read_model_manifest
from server.results import FILE, Results, Text
from server.run_folder import CONFIG, PLAN, SimulationPlan

if TYPE_CHECKING:
    from federation_configs.schema import FederationConfig
    from server.progress import Progress

_NAMED = 8
"""Unknown labels that are shown by name."""


class ExternalTest(BaseModel):
    """What a classifier reached on images of another place.

    Attributes:
        run: the classifier's.
        images: what was tested on.
        score: its figures, at the temperature that its own federation's validation images told.
        unknown: images whose label is none of its classes, by label; they test nothing.
        unlabelled: images without a label.
        trained: images left out because the classifier's run, or the one that pretrained its backbone, had them.
        unchecked: whether images of theirs may be among those that were tested: what they had is not here any more, or
            lies at real hospitals.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Text
    images: int
    score: ProbeScore
    unknown: dict[Text, int]
    unlabelled: int
    trained: int
    unchecked: bool

    @property
    def sentences(self) -> list[str]:
        """What was left out, a sentence each."""
        shown = ", ".join(f"{label} ({count:,})" for label, count in list(self.unknown.items())[:_NAMED])
        more = f" and {len(self.unknown) - _NAMED} more" if len(self.unknown) > _NAMED else ""
        found = [
            (sum(self.unknown.values()), f"have labels that the classifier does not know: {shown}{more}"),
            (self.unlabelled, "have no label"),
            (self.trained, "were left out, as the classifier was trained or chosen with them"),
        ]
        told = [f"{count:,} images {what}" for count, what in found if count]
        if self.unchecked:
            told.append(
                "what the classifier was trained with is not here, so nobody can say whether it is among these images"
            )
        return told


def evaluate_classifier(
    run: str, data: Path, *, task: str | None, home: Path, device: str, progress: Progress
) -> ExternalTest:
    """Test the classifier of a finished run on every labelled image of a folder.

    Args:
        run: id of the classifier's run.
        data: a folder with a labels.csv, or a data set as it is published.
        task: a registered downstream task whose labels the folder has, where it has others than the classifier
            learned; its classes must be the classifier's. None: the classifier's own labels.
        home: the folder of all runs.
        device: where to compute.
        progress: shows what happens.

    Raises:
        InputError: a run without a classifier, a folder without images of its classes, a task of other classes.
    """
    folder = home / run
    config = load_config(folder / CONFIG)
    options = config.curriculum.stage[-1].options
    assert isinstance(options, ClassificationOptions)
    told = options if task is None else _told_by(task, options)
    site = SiteHome(home)
    with progress.reading(data) as on_file:
        scanned = scan(data, site, config.images.pipeline, on_file=on_file)
    seen, unchecked = _trained_on(folder, config, site, progress)
    rows = sorted((row for row in scanned.rows if row.content not in seen), key=lambda row: row.content)
    places, targets = labelled_rows(rows, told)
    if not places:
        raise InputError(_nothing_known(data, scanned, told, trained=len(scanned.rows) - len(rows)))
    known = [rows[place] for place in places]
    cache = ImageCache(site.store, config.images.pipeline)
    images = StageImages(cache.open([row.content for row in known]), known, torch.tensor(targets, dtype=torch.long))
    model = folder / MODEL_FOLDER
    classifier = load_classification(model, load_backbone(model, config), options)
    manifest, _ = read_model_manifest(model)
    score = assess_elsewhere(config, classifier, images, temperature=manifest.temperature, device=device)
    labels = [row.told(told.column) for row in rows]
    return ExternalTest(
        run=run,
        images=len(known),
        score=_with_training_counts(score, folder),
        unknown=dict(Counter(label for label in labels if label and label not in told.class_of).most_common()),
        unlabelled=sum(not label for label in labels),
        trained=len(scanned.rows) - len(rows),
        unchecked=unchecked,
    )


def _told_by(task: str, options: ClassificationOptions) -> ClassificationOptions:
    """The classifier's options with the labels of a registered task of the same classes."""
    classes = downstream_tasks[task].classes
    if set(classes) != set(options.classes):
        raise InputError(
            f"--task {task}: its classes are {', '.join(sorted(classes))}; the classifier's are"
            f" {', '.join(options.names)}"
        )
    return ClassificationOptions.model_validate({**options.model_dump(exclude_none=True), "classes": dict(classes)})


def _trained_on(folder: Path, config: FederationConfig, site: SiteHome, progress: Progress) -> tuple[set[str], bool]:
    """The content of the images that pretrained, trained or chose a run's classifier; whether some are not here."""
    folders, complete = _data_of(folder)
    there = [path for path in folders if path.is_dir()]
    found = set[str]()
    for path in there:
        with progress.reading(path) as on_file:
            rows = scan(path, site, config.images.pipeline, on_file=on_file).rows
        found |= {row.content for row in rows if config.holdout.split_of(row.point) != "test"}
    return found, not complete or len(there) < len(folders)


def _data_of(folder: Path) -> tuple[list[Path], bool]:
    """The image folders of a simulated run and of the run that it began with; whether these are all."""
    if not (folder / PLAN).is_file():
        return [], False  # real hospitals: their images are nowhere here
    plan = SimulationPlan.load(folder)
    own = [Path(path) for path in plan.data]
    if plan.initial is None:
        return own, True
    earlier, complete = _data_of(Path(plan.initial.path))
    return list(dict.fromkeys([*own, *earlier])), complete


def _with_training_counts(score: ProbeScore, folder: Path) -> ProbeScore:
    """With the run's own numbers of training images beside the figures, where it knows them."""
    results = Results.load(folder) if (folder / FILE).is_file() else None
    pooled = None if results is None or results.downstream is None else results.downstream.pooled
    if pooled is None:
        return score
    counts = {name: entry.n_train for name, entry in pooled.per_class.items()}
    per_class = {
        name: entry.model_copy(update={"n_train": counts.get(name)}) for name, entry in score.per_class.items()
    }
    return score.model_copy(update={"n_train": pooled.n_train, "per_class": per_class})


def _nothing_known(data: Path, scanned: Scan, options: ClassificationOptions, *, trained: int) -> str:
    column = options.column
    there = Counter(row.told(column) for row in scanned.rows)
    labels = [str(label) for label, _ in there.most_common(_NAMED) if label]
    found = f"its column {column!r} has {', '.join(labels)}" if labels else f"its images have no column {column!r}"
    known = ", ".join(sorted(options.class_of))
    left = f"; {trained:,} images were left out, as the classifier was trained or chosen with them" if trained else ""
    return f"{data}: no image to test on; {found}, and the classifier knows {known}{left}"

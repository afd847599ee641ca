"""Where the arms of one seed are played: the seed's sites, images and starting weights, and stages that are there."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import RunFailed
from federation_configs.loading import check_config, config_sha256
from server.global_model import (
    NEAR_CHANCE,
    backbone_of,
    backbone_sha256,
    flat_backbone,
    new_backbone,
    read_backbone,
    save_weights,
)
from server.metrics_log import FILE as METRICS
from server.metrics_log import read_lines
from server.model_manifest import WEIGHTS_FILE
from server.observer import Observer
from server.rounds import RoundLoop
from server.run_folder import held
from server.run_start import Start
from server.simulation import ENGINES, versions
from server.study.cells import ModelScores, PlayedStage
from server.study.measures import KNN, LINEAR, finetune_measure, folds_measure
from server.tuning.settings import among

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.serverapp import Grid

    from aiseeme_models.backbones import Backbone
    from aiseeme_models.downstream.finetune import FineTuneOptions
    from aiseeme_models.downstream.folds import Fold
    from client.site import Site
    from federation_configs.schema import FederationConfig
    from server.probing import ProbeImages
    from server.study.dealing import Training

STAGE_FILE = "stage.json"
STAGES = "stages"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the arms of one seed have in common.

    A stage is played once. Its folder is named by the hash of all that its bits depend on: the configuration up to it,
    the backbone before it, which image is at which site, and what computes. So curricula that begin alike share their
    beginning, in this study and in others, and a study that was interrupted goes on in the middle of a stage.

    Attributes:
        config: with the seed.
        sites: the federation's, dealt by the seed.
        images: what probes train and test on; None where nothing is scored here.
        initial: given weights, as their file or folder; None where there are none.
        finetune: which fine-tunings are measured.
        folds: in how many folds of patients probes are measured too; 0: in none.
        folders: from how many folders the images come; a patient may be in several.
        home: the folder of all runs; played stages are kept below it.
        engine: ``local`` or ``ray``.
        observer: told what happens in the rounds.
    """

    config: FederationConfig
    sites: list[Site]
    images: ProbeImages | None
    initial: Path | None
    finetune: tuple[FineTuneOptions, ...]
    folds: int
    folders: int
    home: Path
    engine: str
    observer: Observer

    def check_folds(self) -> None:
        """See that the folds can be made of the images.

        Raises:
            InputError: see `aiseeme_models.downstream.folds.check_folds`.
        """
        from aiseeme_models.downstream.folds import check_folds

        if self.folds and self.images is not None:
            check_folds(self.images.all_labels, self._patients(), self.folds)

    @cached_property
    def _in_folds(self) -> list[Fold]:
        from aiseeme_models.downstream.folds import patient_folds

        assert self.images is not None
        return patient_folds(self.images.all_labels, self._patients(), self.folds)

    def _patients(self) -> list[str]:
        """Of the training images, then of the test images, as all homes name them: the folds must not differ."""
        from client.grouping import lasting_names, names_across_folders

        assert self.images is not None
        rows = [*self.images.train.rows, *self.images.test.rows]
        return lasting_names(rows) if self.folders == 1 else names_across_folders(rows)

    def random(self) -> Backbone:
        """The seed's backbone before any training."""
        return new_backbone(self.config)

    def given(self) -> Backbone:
        """The given weights."""
        assert self.initial is not None
        return read_backbone(self.initial, self.config)

    def train(self, training: Training, start: Backbone | None) -> tuple[Backbone, list[PlayedStage]]:
        """Play a training's curriculum, stage by stage, from ``start`` or the seed's random backbone.

        Raises:
            RunFailed: a site did not count in every round, so that compute would not be equal.
        """
        backbone, records = start, []
        for place in range(len(training.stages)):
            config = _config_of(self.config, training, training.stages[: place + 1])
            backbone, record = self._stage(config, place, training.sites, backbone)
            records.append(record)
        assert backbone is not None
        return backbone, records

    def score(self, name: str, backbone: Backbone, stages: Sequence[PlayedStage] = ()) -> ModelScores:
        """Both probes and the fine-tunings of a backbone."""
        from aiseeme_models.downstream.finetune import fine_tune
        from client.grouping import lasting_names

        assert self.images is not None
        x, x_test = self.images.features(backbone)
        probes = self.images.probes(x, x_test)
        scores = {LINEAR: probes.linear, KNN: probes.knn}
        if self.folds:
            folded = self.images.probes_in_folds(x, x_test, self._in_folds)
            scores |= {folds_measure(LINEAR, self.folds): folded.linear, folds_measure(KNN, self.folds): folded.knn}
        train, test = self.images.train, self.images.test
        ready = self.images.ready(backbone) if self.finetune else backbone
        for options in self.finetune:
            scores[finetune_measure(options)] = fine_tune(
                ready,
                train.images,
                train.labels,
                lasting_names(train.rows),
                test.images,
                test.labels,
                options,
                augmentation=self.images.augmentation,
                seed=self.config.seed,
                device=self.images.device,
                test_patients=test.patients,
            )
        return ModelScores(name=name, backbone_sha256=backbone_sha256(backbone), stages=list(stages), scores=scores)

    def floor(self) -> ModelScores:
        """What a thumbnail and the colours tell."""
        assert self.images is not None
        scores = {LINEAR: self.images.floor()}
        if self.folds:
            scores[folds_measure(LINEAR, self.folds)] = self.images.floor_in_folds(self._in_folds)
        return ModelScores(name="floor", backbone_sha256=None, scores=scores)

    def _stage(
        self, config: FederationConfig, place: int, sites: tuple[Site, ...], backbone: Backbone | None
    ) -> tuple[Backbone, PlayedStage]:
        key = _key(config, sites, backbone)
        folder = self.home / STAGES / key
        if not (folder / STAGE_FILE).exists():
            with held(folder):  # another study may want the same stage
                self._play(folder, config, place, sites, backbone)
        record = PlayedStage.model_validate_json((folder / STAGE_FILE).read_bytes())
        played = read_backbone(folder / WEIGHTS_FILE, config)
        if backbone_sha256(played) != record.backbone_sha256:
            raise RunFailed(f"{folder}: its backbone was altered; remove the folder, and the stage is played again")
        return played, record

    def _play(
        self,
        folder: Path,
        config: FederationConfig,
        place: int,
        sites: tuple[Site, ...],
        backbone: Backbone | None,
    ) -> None:
        if (folder / STAGE_FILE).exists():
            return
        started = time.perf_counter()
        begins = None if backbone is None else Start(place, flat_backbone(config, place, backbone))
        here = [site.with_rows(site.name, site.rows, folder / "sites" / site.name) for site in sites]
        loops: list[RoundLoop] = []

        def make_loop(grid: Grid, clock: Callable[[], float], parallel: bool) -> RoundLoop:
            names = [site.name for site in here]
            loop = RoundLoop(grid, config, folder.name, folder, names, self.observer, clock, parallel, begins=begins)
            loops.append(loop)
            return loop

        state, vector = ENGINES[self.engine](make_loop, here)
        played = backbone_of(config, place, vector)
        options, stage = config.curriculum.stage[place], state.stages[place]
        steps, images = _counted(folder, options.rounds, len(here), options.batch_size)
        loss, chance = stage.losses[-1], stage.chance_loss
        record = PlayedStage(
            task=options.task,
            rounds=stage.rounds_done,
            steps=steps,
            images=images,
            loss=loss,
            heldout=stage.heldout[-1] if stage.heldout else None,
            chance=chance,
            near_chance=chance is not None and loss > NEAR_CHANCE * chance,
            collapsed=_has_collapsed(folder),
            backbone_sha256=save_weights(folder, played),
            seconds=loops[0].earlier_s + time.perf_counter() - started,
        )
        for used in ("sites", "checkpoints", "scratch", "teachers"):  # they have served their purpose
            shutil.rmtree(folder / used, ignore_errors=True)
        write_atomically(folder / STAGE_FILE, record.model_dump_json(indent=2).encode())


def _config_of(config: FederationConfig, training: Training, stages: Sequence[Any]) -> FederationConfig:
    """The federation of a training: its stages so far and its sites."""
    changed: dict[str, Any] = config.model_dump(mode="json")
    changed["curriculum"] = {"stage": [stage.model_dump(mode="json") for stage in stages]}
    return check_config(among(changed, len(training.sites)), where=f"the arm of {training.name}")


def _key(config: FederationConfig, sites: tuple[Site, ...], backbone: Backbone | None) -> str:
    """A hash of all that a stage's bits depend on."""
    computes = {"device": sites[0].device, "threads": torch.get_num_threads(), **versions()}
    digest = hashlib.sha256(json.dumps([config_sha256(config), computes]).encode())
    digest.update((backbone_sha256(backbone) if backbone is not None else "fresh").encode())
    for site in sites:
        lines = sorted(f"{row.content} {row.point}" for row in site.rows)
        digest.update(json.dumps([site.name, lines]).encode())
    return digest.hexdigest()[:24]


def _has_collapsed(folder: Path) -> bool:
    last = {line["site"]: bool(line["collapsed"]) for line in read_lines(folder / METRICS)[0] if "collapsed" in line}
    return 2 * sum(last.values()) > len(last)


def _counted(folder: Path, rounds: int, sites: int, batch_size: int) -> tuple[int, int]:
    """Optimiser steps of a stage's rounds, and images in them, as the sites counted."""
    lines = [line for line in read_lines(folder / METRICS)[0] if "steps" in line]
    if len(lines) != rounds * sites:
        raise RunFailed(
            f"{folder}: {rounds * sites - len(lines)} of {rounds * sites} answers of sites did not count, so that this"
            " arm was trained on less than the others"
        )
    steps = [int(line["steps"]) for line in lines]
    images = [step * min(batch_size, int(line["images"])) for step, line in zip(steps, lines, strict=True)]
    return sum(steps), sum(images)

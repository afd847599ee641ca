"""Every plot of a run's report, by where it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from aiseeme_models.downstream.metrics import ProbeScore
from server.report.confusion_plot import confusion_plot
from server.report.drawing import Plot, colours_of
from server.report.findings import classes_tested
from server.report.interval_plot import Whisker, interval_plot
from server.report.likeness_plot import likeness_of_blocks, likeness_of_models
from server.report.loss_plot import loss_plot
from server.report.record import RunStory
from server.report.reliability_plot import reliability_plot
from server.report.timeline_plot import timeline_plot
from server.results import Downstream, Results

_AUC_OF_CHANCE = 0.5


@dataclass(frozen=True)
class Scored:
    """A score among others.

    Attributes:
        who: whose features, or where they were tested.
        kind: of classifier; empty where all are alike.
        score: what was reached.
        ours: whether it is the run's own, and not what that is held against.
    """

    who: str
    kind: str
    score: ProbeScore
    ours: bool


@dataclass(frozen=True)
class Gallery:
    """Plots by the section of the report that they stand in."""

    probe: tuple[Plot, ...]
    classifier: tuple[Plot, ...]
    stages: tuple[Plot, ...]
    sites: tuple[Plot, ...]
    likeness: tuple[Plot, ...]

    @property
    def all(self) -> tuple[Plot, ...]:
        """All of them, in the order of the report."""
        return (*self.probe, *self.classifier, *self.likeness, *self.stages, *self.sites)


def gallery(record: RunStory) -> Gallery:
    """What there is to draw of a run."""
    return Gallery(
        probe=_intervals(bars(record.results)),
        classifier=_classifier(record.results),
        stages=_stages(record),
        sites=_sites(record),
        likeness=_likeness(record),
    )


def bars(results: Results) -> list[Scored]:
    """What stands beside each other in the probe's table."""
    rows: list[Scored] = []
    if results.probe is not None:
        probes = (("linear", results.probe.linear), ("k-NN", results.probe.knn))
        rows += [Scored("this run", kind, score, ours=True) for kind, score in probes]
    if results.baselines is not None:
        random = results.baselines.random
        others = (
            ("random backbone", "linear", random.linear),
            ("random backbone", "k-NN", random.knn),
            ("thumbnail floor", "linear", results.baselines.floor),
        )
        rows += [Scored(who, kind, score, ours=False) for who, kind, score in others]
    return rows


def tested(task: Downstream) -> list[Scored]:
    """What stands beside each other in the classifier's table, all sites first; nothing where no image was here."""
    if task.pooled is None:
        return []
    rows = [Scored("all sites", "", task.pooled, ours=True)]
    rows += [Scored(name, "", score, ours=True) for name, score in task.sites.items()]
    return rows if task.floor is None else [*rows, Scored("thumbnail floor", "", task.floor, ours=False)]


def _stages(record: RunStory) -> tuple[Plot, ...]:
    colours = colours_of([site.name for site in record.results.sites])
    return tuple(
        Plot(
            f"stage{number}",
            f"{number} · {stage.task}",
            f"loss of stage {number} by round",
            partial(loss_plot, curves, stage.chance_loss, colours),
        )
        for number, (stage, curves) in enumerate(zip(record.results.stages, record.curves, strict=False), start=1)
    )


def _classifier(results: Results) -> tuple[Plot, ...]:
    task = results.downstream
    if task is None or task.pooled is None:
        return ()
    found = list(_intervals(tested(task)))
    if task.pooled.confusion is not None:
        names = list(task.pooled.per_class)
        found.append(
            Plot(
                "confusion",
                "Confusion, all sites: images, and their share of the true class",
                "a table of true classes by answers",
                partial(confusion_plot, task.pooled.confusion, names),
            )
        )
    if task.pooled.calibration is not None:
        calibration = task.pooled.calibration
        known = f"calibration error {calibration.ece:.3f}"
        if calibration.temperature is not None and calibration.ece_unscaled is not None:
            known += f" at temperature {calibration.temperature:.3f}, {calibration.ece_unscaled:.3f} without"
        found.append(
            Plot(
                "reliability",
                f"Reliability, all sites: {known}",
                "share of answers that are right, by confidence",
                partial(reliability_plot, calibration),
            )
        )
    return tuple(found)


def _intervals(rows: Sequence[Scored]) -> tuple[Plot, ...]:
    """Balanced accuracy and AUC of whatever stands beside each other; the first row's classes say what chance is."""
    if not rows:
        return ()
    plots = []
    for name, title, level in (
        ("balanced_accuracy", "Balanced accuracy", 1 / classes_tested(rows[0].score)),
        ("macro_auc", "Macro AUC", _AUC_OF_CHANCE),
    ):
        whiskers = [
            Whisker(f"{row.who}, {row.kind}" if row.kind else row.who, value, row.score.intervals.get(name), row.ours)
            for row in rows
            if (value := getattr(row.score, name)) is not None
        ]
        if whiskers:
            draw = partial(interval_plot, whiskers, level)
            plots.append(Plot(name.replace("_", "-"), f"{title}, 95 % intervals", f"{title} with intervals", draw))
    return tuple(plots)


def _sites(record: RunStory) -> tuple[Plot, ...]:
    results = record.results
    if not record.counted or not results.sites:
        return ()
    missed: Mapping[str, list[int]] = {site.name: [one.round for one in site.missed] for site in results.sites}
    ends = list(accumulate(stage.rounds_done for stage in results.stages if stage.rounds_done))
    draw = partial(timeline_plot, [site.name for site in results.sites], record.counted, missed, ends)
    return (Plot("timeline", "Who counted in which round", "rounds in which each site counted", draw),)


def _likeness(record: RunStory) -> tuple[Plot, ...]:
    pairs = record.audits.likeness
    if not pairs:
        return ()
    return (
        Plot(
            "cka",
            "Linear CKA of the last block",
            "a table of models by models: linear CKA of the last block",
            partial(likeness_of_models, pairs),
        ),
        Plot(
            "cka-by-block",
            "Linear CKA by block",
            "a table of pairs of models by blocks: linear CKA",
            partial(likeness_of_blocks, pairs),
        ),
    )

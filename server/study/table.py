"""A study's table: mean and deviation over the seeds, and each arm beside the reference, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from aiseeme_models.atomic_files import write_atomically
from federation_configs.command_line import shown
from server.study.measures import is_in_folds, title_of

if TYPE_CHECKING:
    from rich.console import Console

    from server.study.arms import Arm
    from server.study.cells import Cell

JSON_FILE, MARKDOWN_FILE = "table.json", "table.md"
_FEW_SEEDS = 5


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Part):
    """One measure of one arm over the seeds.

    Attributes:
        values: balanced accuracy with each of the line's seeds.
        mean: of the values.
        sd: standard deviation of the values (n - 1); None with one seed.
        auc: mean macro AUC; None where it is undefined with one of the seeds.
        differences: value less the reference's with the same seed; None for the reference itself.
        difference: their mean.
        p: two-sided p-value of the paired t-test over the seeds; None with one seed, or where all differences are
            alike, so that the test is undefined.
    """

    values: list[float]
    mean: float
    sd: float | None
    auc: float | None
    differences: list[float] | None
    difference: float | None
    p: float | None


class Line(_Part):
    """One arm.

    Attributes:
        arm: a folder's name.
        title: for people.
        says: what it is.
        seeds: those with which it was played; a cell that failed is not among them.
        collapsed: those with which a stage collapsed; they are scored like the others.
        steps: optimiser steps as its sites counted them, of the seeds with the least and the most; 0 without training.
        images: images in those steps.
        figures: by measure.
        seconds: wall time of its cells, without the stages that another arm had played before.
    """

    arm: str
    title: str
    says: str
    seeds: list[int]
    collapsed: list[int]
    steps: tuple[int, int]
    images: tuple[int, int]
    figures: dict[str, Figure]
    seconds: float


class StudyTable(_Part):
    """What a study came to.

    Attributes:
        kind: of study.
        config: the configuration's name.
        seeds: those that are whole.
        reference: title of the arm that the others are compared with.
        measures: in the order of the columns.
        train_images: labelled images that probes are fitted on.
        test_images: images that test.
        tested: the split whose patients test.
        failed: cells that could not be played, each with its reason.
        lines: the arms.
    """

    kind: str
    config: str
    seeds: list[int]
    reference: str
    measures: list[str]
    train_images: int
    test_images: int
    tested: str
    failed: list[str]
    lines: list[Line]

    @property
    def notes(self) -> list[str]:
        """What a reader must know about the figures."""
        n = len(self.seeds)
        said = [
            "Balanced accuracy, mean and standard deviation over the seeds"
            f" {', '.join(map(str, self.seeds))}; {self.test_images} images of patients (or lesions) of the"
            f" {self.tested} split test, the same with every seed.",
            f"Differences are to {self.reference!r} with the same seed; p is that of the paired t-test over the seeds,"
            " not corrected for the number of comparisons.",
        ]
        if any(is_in_folds(measure) for measure in self.measures):
            said.append(
                f"In folds: each of {self.train_images + self.test_images} labelled images is tested once, by a probe"
                " fitted on those of other patients. Most of them were in pretraining, without labels: this compares"
                " arms, with less chance in it than one test split has."
            )
        if n < 2:
            said.append("One seed: no deviation and no test.")
        elif n < _FEW_SEEDS:
            from scipy.stats import t

            needed = float(t.ppf(0.975, n - 1)) / math.sqrt(n)
            said.append(
                f"{n} seeds are few: p < 0.05 needs a mean difference of {needed:.1f} standard deviations of the"
                " differences. A large p says nothing; look at the differences of each seed."
            )
        said.append("With each seed every trained arm made its steps on equally many images, as its sites counted.")
        said.append("Views per image differ between pretext tasks and are not counted.")
        said += [
            f"Collapsed (all images had nearly the same features) and scored all the same: {line.title}, seeds"
            f" {', '.join(map(str, line.collapsed))}."
            for line in self.lines
            if line.collapsed
        ]
        return said + [f"FAILED: {reason}" for reason in self.failed]


def study_table(
    kind: str,
    config: str,
    arms: Sequence[Arm],
    cells: Sequence[Cell],
    measures: Sequence[str],
    *,
    train_images: int,
    test_images: int,
    tested: str,
    failed: Sequence[str] = (),
) -> StudyTable:
    """The table of cells that are there; the first arm, which has every seed, is what the others are compared with."""
    seeds = sorted({cell.seed for cell in cells})
    of = {(cell.arm, cell.seed): cell for cell in cells}
    lines = []
    for arm in arms:
        there = [seed for seed in seeds if (arm.name, seed) in of]
        own = [of[arm.name, seed] for seed in there]
        reference = None if arm is arms[0] else [of[arms[0].name, seed] for seed in there]
        steps, images = [cell.steps for cell in own] or [0], [cell.images for cell in own] or [0]
        lines.append(
            Line(
                arm=arm.name,
                title=arm.title,
                says=arm.says,
                seeds=there,
                collapsed=[cell.seed for cell in own if cell.collapsed],
                steps=(min(steps), max(steps)),
                images=(min(images), max(images)),
                figures={
                    measure: figure for measure in measures if (figure := _figure(measure, own, reference)) is not None
                },
                seconds=sum(cell.seconds for cell in own),
            )
        )
    return StudyTable(
        kind=kind,
        config=config,
        seeds=seeds,
        reference=arms[0].title,
        measures=list(measures),
        train_images=train_images,
        test_images=test_images,
        tested=tested,
        failed=list(failed),
        lines=lines,
    )


def _figure(measure: str, cells: Sequence[Cell], reference: Sequence[Cell] | None) -> Figure | None:
    values = [cell.accuracy(measure) for cell in cells]
    if not values or any(value is None for value in values):
        return None
    known = [value for value in values if value is not None]
    aucs = [cell.auc(measure) for cell in cells]
    defined = [auc for auc in aucs if auc is not None]
    base = [cell.accuracy(measure) for cell in reference or ()]
    differences = [value - other for value, other in zip(known, base, strict=False) if other is not None]
    compared = reference is not None and len(differences) == len(known)
    return Figure(
        values=known,
        mean=_mean(known),
        sd=_deviation(known),
        auc=_mean(defined) if len(defined) == len(aucs) else None,
        differences=differences if compared else None,
        difference=_mean(differences) if compared else None,
        p=_paired_p(differences) if compared else None,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float | None:
    import statistics

    return statistics.stdev(values) if len(values) > 1 else None


def _paired_p(differences: Sequence[float]) -> float | None:
    """p of the t-test that paired differences have mean 0."""
    if len(differences) < 2 or max(differences) - min(differences) < 1e-12:
        return None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0.0).pvalue)  # the paired test of a and b is this one of a - b


def write_table(folder: Path, table: StudyTable) -> None:
    """Write ``table.json`` and ``table.md``."""
    write_atomically(folder / JSON_FILE, table.model_dump_json(indent=2).encode())
    write_atomically(folder / MARKDOWN_FILE, markdown(table).encode())


def markdown(table: StudyTable) -> str:
    """The table with its notes, as Markdown."""
    blocks = [f"## Study of {table.kind}: {table.config}", "\n".join(f"- {note}" for note in table.notes)]
    titles = [title_of(measure) for measure in table.measures]
    head = ["arm", *titles, "steps x images"]
    rows = [[line.title, *_cells(table, line), _range(line.images)] for line in table.lines]
    blocks.append(_grid(head, rows))
    if len(table.lines) > 1:
        rows = [[line.title, *_differences(table, line)] for line in table.lines[1:]]
        blocks.append(f"Difference to {table.reference!r}: mean (each seed), p")
        blocks.append(_grid(["arm", *titles], rows))
    blocks.append("Macro AUC, mean over the seeds")
    blocks.append(_grid(["arm", *titles], [[line.title, *_aucs(table, line)] for line in table.lines]))
    return "\n\n".join(blocks) + "\n"


def print_table(console: Console, table: StudyTable, folder: Path) -> None:
    """The table for a person."""
    titles = [title_of(measure) for measure in table.measures]
    shown_table = Table(title=shown(f"study of {table.kind}: {table.config}, balanced accuracy, mean ± sd"))
    for title in ("arm", *titles, "steps x images"):
        shown_table.add_column(title, justify="left" if title == "arm" else "right", overflow="fold")
    for line in table.lines:
        shown_table.add_row(shown(line.title), *_cells(table, line), _range(line.images))
    console.print(shown_table)
    if len(table.seeds) > 1:
        differences = Table(title=shown(f"difference to {table.reference}: mean (each seed), p"))
        for title in ("arm", *titles):
            differences.add_column(title, justify="left" if title == "arm" else "right", overflow="fold")
        for line in table.lines[1:]:
            differences.add_row(shown(line.title), *_differences(table, line))
        console.print(differences)
    for note in table.notes:
        console.print(shown(note, 1000), highlight=False)
    console.print(f"files: {shown(str(folder), 1000)}", highlight=False, soft_wrap=True)


def _cells(table: StudyTable, line: Line) -> list[str]:
    return [_cell(line.figures.get(measure)) for measure in table.measures]


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{figure.mean:.3f}" if figure.sd is None else f"{figure.mean:.3f} ± {figure.sd:.3f}"


def _differences(table: StudyTable, line: Line) -> list[str]:
    return [_difference(line.figures.get(measure)) for measure in table.measures]


def _difference(figure: Figure | None) -> str:
    if figure is None or figure.differences is None or figure.difference is None:
        return "-"
    each = ", ".join(f"{value:+.3f}" for value in figure.differences)
    return f"{figure.difference:+.3f} ({each})" + ("" if figure.p is None else f", p {figure.p:.2f}")


def _aucs(table: StudyTable, line: Line) -> list[str]:
    figures = [line.figures.get(measure) for measure in table.measures]
    return ["-" if figure is None or figure.auc is None else f"{figure.auc:.3f}" for figure in figures]


def _range(images: tuple[int, int]) -> str:
    least, most = images
    return "-" if not most else f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

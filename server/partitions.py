"""How a simulation deals the images of one folder to sites: whole patients or lesions, never parts of one."""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.errors import InputError
from aiseeme_models.registry import Registry


@dataclass(frozen=True)
class Assignment:
    """Which site each row of a folder's labels.csv goes to.

    Attributes:
        site_of_row: position in ``site_names``, one per row.
        site_names: names of the sites, all different, fit for folder names.
    """

    site_of_row: list[int]
    site_names: list[str]


@dataclass(frozen=True)
class PartitionRow:
    """One line of the table that is shown before a simulation starts.

    Attributes:
        site: the site's name.
        images: its images.
        groups: its patients or lesions.
        classes: its images per label, all labels of the folder in falling order of their total.
    """

    site: str
    images: int
    groups: int
    classes: dict[str, int]


@dataclass(frozen=True)
class Groups:
    """The indivisible parts of a folder, in the order of their names.

    Attributes:
        names: ``G`` patients or lesions.
        sizes: ``(G,)`` int64 images of each.
        first_rows: ``G`` rows that speak for their group.
    """

    names: list[str]
    sizes: NDArray[np.int64]
    first_rows: list[int]


class Partition(ABC):
    """A way to deal groups to sites."""

    @classmethod
    @abstractmethod
    def parse(cls, argument: str) -> Partition:
        """The partition for what follows the colon (empty without one).

        Raises:
            InputError: the argument makes no sense.
        """

    @abstractmethod
    def deal(
        self,
        groups: Groups,
        labels: Sequence[str | None],
        columns: Mapping[str, Sequence[str]],
        sites: int,
        generator: np.random.Generator,
    ) -> tuple[list[int], list[str]]:
        """The site of each group and the sites' names."""


partitions: Registry[type[Partition]] = Registry("partition")


@partitions.register("iid")
@dataclass(frozen=True)
class Iid(Partition):
    """Random groups, equally many images per site as far as groups allow."""

    @classmethod
    def parse(cls, argument: str) -> Iid:
        """Takes no argument."""
        if argument:
            raise InputError(f"partition 'iid:{argument}': iid takes no argument")
        return cls()

    def deal(
        self,
        groups: Groups,
        labels: Sequence[str | None],
        columns: Mapping[str, Sequence[str]],
        sites: int,
        generator: np.random.Generator,
    ) -> tuple[list[int], list[str]]:
        """Each group, in random order, goes to the site that has the fewest images."""
        site_of_group = [0] * len(groups.names)
        images = np.zeros(sites, dtype=np.int64)
        for group in generator.permutation(len(groups.names)):
            site = int(images.argmin())
            site_of_group[group] = site
            images[site] += groups.sizes[group]
        return site_of_group, _numbered(sites)


@partitions.register("quantity")
@dataclass(frozen=True)
class Quantity(Partition):
    """Sites of unequal size with the same mixture: shares of the images ~ Dirichlet(alpha), as in NIID-Bench."""

    alpha: float

    @classmethod
    def parse(cls, argument: str) -> Quantity:
        """``quantity:ALPHA``."""
        return cls(_alpha("quantity", argument))

    def deal(
        self,
        groups: Groups,
        labels: Sequence[str | None],
        columns: Mapping[str, Sequence[str]],
        sites: int,
        generator: np.random.Generator,
    ) -> tuple[list[int], list[str]]:
        """Cuts the shuffled groups in the proportions that were drawn."""
        site_of_group = [0] * len(groups.names)
        _cut(np.arange(len(groups.names)), groups.sizes, self.alpha, sites, generator, site_of_group)
        return site_of_group, _numbered(sites)


@partitions.register("dirichlet")
@dataclass(frozen=True)
class DirichletLabels(Partition):
    """Sites with different class mixtures: each class is shared out ~ Dirichlet(alpha) (Hsu et al., 1909.06335)."""

    alpha: float

    @classmethod
    def parse(cls, argument: str) -> DirichletLabels:
        """``dirichlet:ALPHA``."""
        return cls(_alpha("dirichlet", argument))

    def deal(
        self,
        groups: Groups,
        labels: Sequence[str | None],
        columns: Mapping[str, Sequence[str]],
        sites: int,
        generator: np.random.Generator,
    ) -> tuple[list[int], list[str]]:
        """Cuts the shuffled groups of each class in proportions of its own; a group has its first row's label."""
        of_group = [labels[row] for row in groups.first_rows]
        unlabelled = sum(label is None for label in labels)
        if unlabelled:
            raise InputError(
                f"partition 'dirichlet' needs a label for every image, {unlabelled} of {len(labels)} have none: "
                "complete the column 'label' of labels.csv, or use iid or quantity"
            )
        site_of_group = [0] * len(of_group)
        for label in sorted({label for label in of_group if label is not None}):
            members = np.array([group for group, its in enumerate(of_group) if its == label])
            _cut(members, groups.sizes, self.alpha, sites, generator, site_of_group)
        return site_of_group, _numbered(sites)


@partitions.register("by")
@dataclass(frozen=True)
class ByColumn(Partition):
    """One site per frequent value of a column of labels.csv, the rarer values together in a site ``other``."""

    column: str

    @classmethod
    def parse(cls, argument: str) -> ByColumn:
        """``by:COLUMN``."""
        if not argument:
            raise InputError("partition 'by': name a column of labels.csv, for instance by:scanner")
        return cls(argument)

    def deal(
        self,
        groups: Groups,
        labels: Sequence[str | None],
        columns: Mapping[str, Sequence[str]],
        sites: int,
        generator: np.random.Generator,
    ) -> tuple[list[int], list[str]]:
        """The N-1 most frequent values (counted in images) each make a site; a group has its first row's value."""
        if self.column not in columns:
            there_are = ", ".join(sorted(columns)) or "none"
            raise InputError(f"partition 'by:{self.column}': labels.csv has no such column; there are: {there_are}")
        values = [columns[self.column][row].strip() or "unknown" for row in groups.first_rows]
        images: Counter[str] = Counter()
        for value, size in zip(values, groups.sizes, strict=True):
            images[value] += int(size)
        ranked = sorted(images, key=lambda value: (-images[value], value))
        if len(ranked) < sites:
            raise InputError(
                f"partition 'by:{self.column}' makes at most {len(ranked)} sites, one for each of its values: "
                f"{sites} were asked for"
            )
        site_of_value = {value: min(rank, sites - 1) for rank, value in enumerate(ranked)}
        titles = ranked[:sites] if len(ranked) == sites else [*ranked[: sites - 1], "other"]
        return [site_of_value[value] for value in values], _unique_slugs(titles)


def parse_partition(text: str) -> Partition:
    """The partition called ``iid``, ``dirichlet:ALPHA``, ``quantity:ALPHA`` or ``by:COLUMN``.

    Raises:
        InputError: no such partition, or its argument makes no sense.
    """
    name, _, argument = text.strip().partition(":")
    return partitions[name.strip()].parse(argument.strip())


def assign(
    partition: Partition,
    *,
    sites: int,
    groups: Sequence[str],
    labels: Sequence[str | None],
    columns: Mapping[str, Sequence[str]],
    seed: int,
) -> Assignment:
    """Deal rows to sites; all rows of a group (patient or lesion) go to one site.

    The result depends on the seed and on the rows, not on their order (save that a group's first row speaks for it).

    Args:
        partition: how.
        sites: number of sites, at least 1.
        groups: patient or lesion of each row.
        labels: label of each row, None where there is none.
        columns: further columns of labels.csv, one value per row; ``label`` may be among them.
        seed: the run's seed.

    Raises:
        InputError: the rows cannot be dealt so, or a site would stay empty.
    """
    from aiseeme_models.seeding import derive_seed  # imports torch

    if sites < 1:
        raise InputError(f"{sites} sites: there must be at least 1")
    indivisible = _collect(groups)
    if len(indivisible.names) < sites:
        raise InputError(
            f"{sites} sites need at least as many patients or lesions, which are never divided: "
            f"there are {len(indivisible.names)}; use fewer sites"
        )
    generator = np.random.Generator(np.random.PCG64(derive_seed(seed, "partition")))
    with_label = {"label": [label or "" for label in labels], **columns}
    site_of_group, names = partition.deal(indivisible, labels, with_label, sites, generator)
    empty = [name for site, name in enumerate(names) if site not in set(site_of_group)]
    if empty:
        raise InputError(
            f"no image falls to {', '.join(empty)}: use a larger ALPHA, fewer sites than {sites}, or another seed"
        )
    site_by_name = dict(zip(indivisible.names, site_of_group, strict=True))
    return Assignment(site_of_row=[site_by_name[group] for group in groups], site_names=names)


def partition_table(assignment: Assignment, groups: Sequence[str], labels: Sequence[str | None]) -> list[PartitionRow]:
    """Images, groups and images per class of each site, for printing before a run."""
    totals = Counter(label for label in labels if label is not None)
    classes = sorted(totals, key=lambda label: (-totals[label], label))
    table = []
    for site, name in enumerate(assignment.site_names):
        rows = [row for row, its_site in enumerate(assignment.site_of_row) if its_site == site]
        counts = Counter(labels[row] for row in rows)
        table.append(
            PartitionRow(
                site=name,
                images=len(rows),
                groups=len({groups[row] for row in rows}),
                classes={label: counts[label] for label in classes},
            )
        )
    return table


def _collect(groups: Sequence[str]) -> Groups:
    first_row: dict[str, int] = {}
    for row, group in enumerate(groups):
        first_row.setdefault(group, row)
    sizes = Counter(groups)
    names = sorted(first_row)
    return Groups(
        names=names,
        sizes=np.array([sizes[name] for name in names], dtype=np.int64),
        first_rows=[first_row[name] for name in names],
    )


def _cut(
    members: NDArray[np.int64],
    sizes: NDArray[np.int64],
    alpha: float,
    sites: int,
    generator: np.random.Generator,
    site_of_group: list[int],
) -> None:
    """Shuffle ``members``, cut them in Dirichlet(alpha) proportions of their images, note each one's site."""
    shares = generator.dirichlet(np.full(sites, alpha))
    shuffled = generator.permutation(members)
    images = sizes[shuffled].astype(np.float64)
    middles = (np.cumsum(images) - images / 2.0) / images.sum()  # where each group's middle image lies, in (0, 1)
    dealt = np.searchsorted(np.cumsum(shares)[:-1], middles)
    for group, site in zip(shuffled, dealt, strict=True):
        site_of_group[group] = int(site)


def _alpha(name: str, argument: str) -> float:
    try:
        alpha = float(argument)
    except ValueError:
        alpha = 0.0
    if not 1e-3 <= alpha <= 1e6:  # NaN too; outside, the draw underflows
        raise InputError(f"partition '{name}:{argument}': ALPHA must be a number from 0.001 to 1e6, e.g. {name}:0.5")
    return alpha


def _numbered(sites: int) -> list[str]:
    width = len(str(sites))
    return [f"site-{number:0{width}d}" for number in range(1, sites + 1)]


def _unique_slugs(titles: Sequence[str]) -> list[str]:
    """Names fit for folders: lower-case ASCII letters, digits and dashes, a number added where two would be equal."""
    taken: set[str] = set()
    slugs = []
    for title in titles:
        plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
        base = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-") or "site"
        slug, number = base, 1
        while slug in taken:
            number += 1
            slug = f"{base}-{number}"
        taken.add(slug)
        slugs.append(slug)
    return slugs

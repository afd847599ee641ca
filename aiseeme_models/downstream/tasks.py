"""The tasks that backbones serve in the end, by name: which classes there are, and which labels mean them.

Labels are those of the data sets as they are published, and of this project's own csv files; upper and lower case are
told apart. Where to get each set and where to put it stands in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiseeme_models.registry import Registry


@dataclass(frozen=True)
class DownstreamTask:
    """A classification task.

    Attributes:
        title: what it is, for people.
        classes: each class, and the labels that mean it.
        source: where data and protocol come from.
        auc_of: the classes over whose one-against-rest AUC the official figure is the mean; none: the official figure
            is balanced accuracy.
    """

    title: str
    classes: Mapping[str, tuple[str, ...]]
    source: str
    auc_of: tuple[str, ...] = ()


downstream_tasks: Registry[DownstreamTask] = Registry("downstream task")

downstream_tasks.register("ham10000")(
    DownstreamTask(
        "skin lesions, the 7 classes of HAM10000",
        {name: (name, name.upper()) for name in ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")},
        "Tschandl et al. 2018, arXiv 1803.10417",
    )
)
downstream_tasks.register("isic2019")(
    DownstreamTask(
        "skin lesions, the 8 classes of ISIC 2019",
        {name: (name, name.lower()) for name in ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")},
        "ISIC 2019 challenge; UNK is no class of the training set",
    )
)
downstream_tasks.register("isic2017")(
    DownstreamTask(
        "melanoma and seborrheic keratosis of ISIC 2017, each against the rest",
        {"melanoma": ("melanoma",), "seborrheic_keratosis": ("seborrheic_keratosis",), "nevus": ("nevus",)},
        "Codella et al. 2018, arXiv 1710.05006, part 3: mean AUC of the two",
        auc_of=("melanoma", "seborrheic_keratosis"),
    )
)
downstream_tasks.register("ph2")(
    DownstreamTask(
        "melanoma against nevi, PH2",
        {"nevus": ("common_nevus", "atypical_nevus", "nevus", "nv"), "melanoma": ("melanoma", "mel")},
        "Mendonça et al. 2013, doi 10.1109/EMBC.2013.6610779",
    )
)
downstream_tasks.register("pneumonia")(
    DownstreamTask(
        "pneumonia in chest radiographs, bacterial and viral apart",
        {
            "normal": ("normal", "NORMAL"),
            "bacterial": ("pneumonia_bacteria", "bacteria"),
            "viral": ("pneumonia_virus", "virus"),
        },
        "Kermany et al. 2018, doi 10.1016/j.cell.2018.02.010",
    )
)
downstream_tasks.register("pneumonia-binary")(
    DownstreamTask(
        "pneumonia in chest radiographs",
        {
            "normal": ("normal", "NORMAL"),
            "pneumonia": ("pneumonia", "PNEUMONIA", "pneumonia_bacteria", "pneumonia_virus", "bacteria", "virus"),
        },
        "Kermany et al. 2018, doi 10.1016/j.cell.2018.02.010",
    )
)
downstream_tasks.register("covidx")(
    DownstreamTask(
        "COVID-19, other pneumonia and normal chest radiographs",
        {"normal": ("normal",), "pneumonia": ("pneumonia",), "COVID-19": ("COVID-19", "covid-19", "covid", "positive")},
        "Wang et al. 2020, arXiv 2003.09871",
    )
)
downstream_tasks.register("nodule-malignancy")(
    DownstreamTask(
        "lung nodules in CT, benign against malignant by the radiologists' ratings",
        {"benign": ("benign", "0"), "malignant": ("malignant", "1")},
        "LIDC-IDRI; median rating below 3 against above 3 (Baltatzis et al. 2021, arXiv 2108.05386)",
    )
)

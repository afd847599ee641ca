"""model/README.md: the model card, in the sections of Mitchell et al. (1810.03993), with measured facts only."""

from __future__ import annotations

import re
from pathlib import Path

from aiseeme_models.atomic_files import replacing
from server.model_manifest import CARD, MODEL_FOLDER
from server.report.findings import classes_tested, findings, verdict
from server.report.gallery import bars, tested
from server.report.page import FILTERS
from server.report.record import read_run


def write_model_card(run_folder: Path) -> Path:
    """Write ``model/README.md`` from what is in a run's folder: its results and its audits.

    Returns:
        The path of the card.

    Raises:
        InputError: ``results.json`` is missing or not what a run writes, or an audit's file is none.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    record = read_run(run_folder)
    results = record.results
    environment = Environment(
        loader=PackageLoader("server", "report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=escape_markdown,
    )
    environment.filters.update(FILTERS)
    card = environment.get_template("model_card.md.j2").render(
        results=results,
        verdict=verdict(results),
        findings=findings(record),
        images=sum(site.images for site in results.sites),
        bars=bars(results),
        tested=tested(results.downstream) if results.downstream else [],
        classes=classes_tested(results.probe.linear) if results.probe else None,
        audits=record.audits,
        origin=record.origin,
    )
    path = run_folder / MODEL_FOLDER / CARD
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as draft:
        draft.write_text(card, encoding="utf-8")
    return path


def escape_markdown(value: object) -> str:
    """``value`` as Markdown text that stands for itself: no markup, link, table bar or HTML can start in it."""
    text = re.sub(r"([\\`*_{}\[\]#!|<>&~$@])", r"\\\1", " ".join(str(value).split()))
    text = re.sub(r"^([-+=])", r"\\\1", text)
    return re.sub(r"(?i)(://|www\.)", lambda match: match[0].replace(":", r"\:").replace(".", r"\."), text)

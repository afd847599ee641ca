"""What audits left in a run's folder is in its report and its card; what is not there is said to be missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aiseeme_models.downstream.subgroups import Gap, Subgroup
from aiseeme_models.errors import InputError
from federation_configs.signatures import public_hex
from server import attention, bias_report, site_audit
from server.report import audits, write_model_card, write_report
from tests.server.finished_runs import RUN, finished_run

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

TEST = {
    "test": "sex by disease",
    "layer": "layer4",
    "effect": 0.8125,
    "p_value": 0.0021,
    "beyond": 0.0042,
    "corrected": 0.0313,
    "control": 0.0005,
    "untrained": [-0.25, 0.125, 0.375],
    "verdict": "found",
    "sizes": {"x": 40, "y": 45, "a": 120, "b": 125},
    "sites": {},
}
BIAS = {
    "run": RUN,
    "tests": [TEST, TEST | {"layer": "stem", "verdict": "not testable", "effect": None, "sizes": [1, 2, 3, 4]}],
    "omitted": {"sex by disease": {"south": "too few patients"}},
    "refused": {"west": "no answer before the deadline"},
    "subgroups": [
        {"column": "sex", "value": "F", "n_images": 1250, "balanced_accuracy": 0.7125, "low": 0.6875, "high": 0.7375},
        {"column": "sex", "value": "X", "n_images": 4, "balanced_accuracy": None, "omitted": "fewer than 10 patients"},
    ],
    "gaps": [{"column": "sex", "best": "F", "worst": "M", "difference": 0.0625, "low": None, "high": None}],
}
ATTENTION = {
    "cam": "grad-cam",
    "rows": [
        {"model": RUN, "kind": "classifier", "images": 812, "energy": 0.5125, "energy_low": 0.4875}
        | {"energy_high": 0.5375, "iou": 0.3125, "mask_share": 0.2625, "zero_maps": 0}
    ],
}
TOLD = {"balanced_accuracy": 0.8125, "low": 0.7875, "high": 0.8375, "p": 0.001, "images": 90, "patients": 40}
SITES = {"chance": 0.5, "rows": [{"sees": "features", "dimensions": 64, "all_images": TOLD, "same_class": None}]}
COMPARE = [
    {
        "first": RUN,
        "second": "another",
        "blocks": [{"blocks": ["stem", "conv1"], "cka": 0.9125, "svcca": 0.8875, "ranks": [1.75, 2.25]}],
        "images": {"north": 64},
        "refused": {"south": "the site has fewer than 64 held-out images to compare models on"},
    }
]
FILES: dict[str, Any] = {
    "audit-bias.json": BIAS,
    "attention.json": ATTENTION,
    "audit-sites.json": SITES,
    "compare.json": COMPARE,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs"), key=KEY)


@pytest.fixture
def written(run: Path) -> Any:
    """Writes the page and the card with some files beside, which are gone afterwards."""

    def write(**files: Any) -> tuple[str, str]:
        for name, content in files.items():
            (run / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return write_report(run).read_text(), write_model_card(run).read_text()

    yield write
    for name in FILES:
        (run / name).unlink(missing_ok=True)


def test_without_audits_there_is_no_section_and_the_card_says_so(written: Any) -> None:
    page, card = written()
    assert "Audits" not in page and "another" not in page
    assert "No association with a group of patients was tested." in card
    assert "Figures per age, sex or skin type were not measured." in card


def test_the_bias_audit_is_a_table_a_finding_and_part_of_the_card(written: Any) -> None:
    page, card = written(**{"audit-bias.json": BIAS})
    for figure in (
        "0.812",
        "-0.250",
        "0.375",
        "0.0021",
        "0.0042",
        "0.0313",
        "0.0005",
        "0.713",
        "0.688 to 0.738",
        "0.062",
    ):
        assert f'<td class="n">{figure}</td>' in page
    assert "40, 45, 120, 125" in page and "1,250" in page and "1, 2, 3, 4" in page
    assert "sex by disease: not made at south (too few patients)." in page
    assert "Sites that did not answer: west (no answer before the deadline)." in page
    assert "fewer than 10 patients" in page and "largest gap: F less M" in page
    found = (
        "The bias audit found associations that neither chance nor untrained networks explain: sex by disease at layer4"
    )
    assert found in page and found in card
    assert "The bias audit could not test: sex by disease at stem." in page
    assert "told figures by sex" in card and "2 association tests; 1 found something" in card
    assert "| sex | F | 0.713 | 0.688 | 0.738 | 1,250 |" in card


def test_sites_that_a_bias_audit_lost_are_a_warning(written: Any) -> None:
    page, card = written(**{"audit-bias.json": BIAS})
    for text in (
        "The bias audit is without west (no answer before the deadline).",
        "The bias audit&#39;s test sex by disease was not made at south (too few patients).",
    ):
        assert f'class="warn"><span>{text}' in page
    assert "The bias audit is without west (no answer before the deadline)." in card
    # Also where no test is left to be shown.
    page, _ = written(**{"audit-bias.json": {"refused": {"west": "withheld"}, "omitted": {"t": {"south": "few"}}}})
    assert "Sites that did not answer: west (withheld)." in page and "t: not made at south (few)." in page


def test_a_small_p_value_is_not_shown_as_none(written: Any) -> None:
    small = TEST | {"p_value": 0.0001, "beyond": 0.00004, "corrected": None}
    rows = [SITES["rows"][0] | {"all_images": TOLD | {"p": 0.0004}, "same_class": TOLD | {"p": 1e-9}}]
    page, card = written(**{"audit-bias.json": BIAS | {"tests": [small]}, "audit-sites.json": SITES | {"rows": rows}})
    for figure in ("0.0001", "&lt;0.0001", "–", "0.0004"):
        assert f'<td class="n">{figure}</td>' in page
    assert page.count("&lt;0.0001") == 2 and "| 0.0004 |" in card


def test_an_audit_writes_every_field_that_a_report_reads() -> None:
    assert (audits.BIAS, audits.ATTENTION, audits.SITES) == (bias_report.FILE, attention.FILE, site_audit.FILE)
    for read, writes in (
        (audits.BiasAudit, bias_report.BiasReport),
        (audits.BiasTest, bias_report.PooledTest),
        (audits.Subgroup, Subgroup),
        (audits.Gap, Gap),
        (audits.Attention, attention.AttentionAudit),
        (audits.AttentionRow, attention.AttentionRow),
        (audits.SiteInference, site_audit.SiteAudit),
        (audits.Attack, site_audit.Attack),
        (audits.Told, site_audit.Told),
    ):
        assert set(read.model_fields) <= set(writes.model_fields), read


def test_attention_and_site_inference_are_tables(written: Any) -> None:
    page, card = written(**{"attention.json": ATTENTION, "audit-sites.json": SITES})
    for figure in ("0.512", "0.487 to 0.537", "0.263", "0.312", "812", "0.812", "0.787 to 0.838"):
        assert f'<td class="n">{figure}</td>' in page
    assert "Chance is 0.500" in page
    assert "classifier | 0.512 | 0.487 | 0.537 | 0.263 | 812 |" in card and "| features | 0.812 |" in card
    assert '<td class="n">0.0010</td>' in page and "0.787 | 0.838 | 0.0010 |" in card


def test_the_comparison_is_drawn_and_told_block_by_block(written: Any) -> None:
    before = written()[0].count("<svg")
    page, _ = written(**{"compare.json": COMPARE})
    assert page.count("<svg") == before + 2
    for text in ("stem / conv1", "0.912", "0.887", "1.8", "2.2", f"<dd>{RUN}, this run</dd>", "<dd>another</dd>"):
        assert text in page
    assert "A / B: north 64." in page


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("compare.json", "[", "not what `aiseeme compare --save` writes"),
        ("compare.json", [COMPARE[0] | {"blocks": [{"cka": 1}]}], "0.blocks.0.blocks: Field required"),
        ("compare.json", [COMPARE[0] | {"blocks": []}], "0.blocks: Tuple should have at least 1 item"),
        ("audit-bias.json", {"tests": [{"layer": "stem"}]}, "tests.0.test: Field required"),
        ("attention.json", {}, "not what `aiseeme audit attention` writes: rows"),
        ("audit-sites.json", {"rows": []}, "chance: Field required"),
    ],
)
def test_a_file_that_is_none_of_an_audits_is_named(written: Any, name: str, content: Any, says: str) -> None:
    with pytest.raises(InputError) as raised:
        written(**{name: content})
    assert name in str(raised.value) and says in str(raised.value)


def test_nothing_that_an_audit_says_becomes_markup(written: Any) -> None:
    evil = "<script>alert(1)</script>\u202e"
    text = json.dumps(FILES).replace("sex by disease", evil).replace("another", evil).replace('"features"', f'"{evil}"')
    page, card = written(**json.loads(text))
    assert "<script" not in page and "\u202e" not in page and "alert(1)" in page
    assert re.search(r"(?<!\\)<", card) is None and "\u202e" not in card


def test_the_page_says_who_signed_the_model_and_when_that_does_not_hold(run: Path, written: Any) -> None:
    page, card = written()
    manifest = json.loads((run / "model" / "model.json").read_text())
    assert public_hex(KEY.public_key()) in page and public_hex(KEY.public_key()) in card
    assert f"round {manifest['round']}, manifest sha256 {manifest['parent_sha256']}" in page
    whole = (run / "model" / "model.json").read_bytes()
    try:
        (run / "model" / "model.json").write_bytes(whole + b"\n")
        page, _ = written()
        assert "Nobody vouches for the model: the signature is not of this model&#39;s manifest." in page
        assert public_hex(KEY.public_key()) not in page
    finally:
        (run / "model" / "model.json").write_bytes(whole)

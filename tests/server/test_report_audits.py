"""What audits left in a run's folder is in its report and its card; what is not there is said to be missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aiseeme_models.errors import InputError
from federation_configs.signatures import public_hex
from server.report import write_model_card, write_report
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
    for figure in ("0.812", "-0.250", "0.375", "0.002", "0.004", "0.031", "0.001", "0.713", "0.688 to 0.738", "0.062"):
        assert f'<td class="n">{figure}</td>' in page
    assert "40, 45, 120, 125" in page and "1,250" in page and "1, 2, 3, 4" in page
    assert "sex by disease: not made at south (too few patients)." in page
    assert "fewer than 10 patients" in page and "largest gap: F less M" in page
    found = (
        "The bias audit found associations that neither chance nor untrained networks explain: sex by disease at layer4"
    )
    assert found in page and found in card
    assert "The bias audit could not test: sex by disease at stem." in page
    assert "told figures by sex" in card and "2 association tests; 1 found something" in card
    assert "| sex | F | 0.713 | 0.688 | 0.738 | 1,250 |" in card


def test_attention_and_site_inference_are_tables(written: Any) -> None:
    page, card = written(**{"attention.json": ATTENTION, "audit-sites.json": SITES})
    for figure in ("0.512", "0.487 to 0.537", "0.263", "0.312", "812", "0.812", "0.787 to 0.838"):
        assert f'<td class="n">{figure}</td>' in page
    assert "Chance is 0.500" in page
    assert "classifier | 0.512 | 0.487 | 0.537 | 0.263 | 812 |" in card and "| features | 0.812 |" in card


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

"""The site's key, settings and log: secret, checked, private."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiseeme_models.errors import InputError
from aiseeme_models.images.rejection import POLICY_REASONS, RejectReason
from client.site_config import load_site_config
from client.site_home import SiteHome
from client.site_key import SiteKey


def test_a_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    first, second = SiteKey.load_or_create(path), SiteKey.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert first.pseudonym("patient", "4711") == second.pseudonym("patient", "4711")
    assert second.unseal(first.seal("DOE^JOHN/1.dcm")) == "DOE^JOHN/1.dcm"
    assert first.seal("a") != first.seal("a"), "equal names cannot be told from their encryption"


def test_pseudonyms_differ_by_site_and_by_kind() -> None:
    one, two = SiteKey(bytes(32)), SiteKey(bytes(range(32)))
    names = {key.pseudonym(kind, "4711") for key in (one, two) for kind in ("patient", "study")}
    assert len(names) == 4 and all(len(name) == 32 for name in names)
    assert len({one.cache_key, two.cache_key, bytes(32), bytes(range(32))}) == 4


def test_a_pseudonym_is_hmac_of_a_derived_key() -> None:
    """Against an independent construction of HKDF (RFC 5869) and HMAC."""
    import hashlib
    import hmac

    secret = bytes(range(32))
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    derived = hmac.new(extracted, b"aiseeme site pseudonyms\x01", hashlib.sha256).digest()
    expected = hmac.new(derived, b"patient\x1f4711", hashlib.sha256).hexdigest()[:32]
    assert SiteKey(secret).pseudonym("patient", "4711") == expected


def test_another_or_damaged_key_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another site key"):
        SiteKey(bytes(range(32))).unseal(SiteKey(bytes(32)).seal("name"))
    (tmp_path / "site.key").write_text("not hexadecimal")
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        SiteKey.load_or_create(tmp_path / "site.key")


def test_settings_have_defaults_and_are_read(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    assert load_site_config(path).intake.admitted == frozenset()
    path.write_text(
        '[intake]\nadmit = ["burned-in-text", "too-small"]\nseconds_per_file = 7\nworkers = 3\n'
        "[cache]\nbudget_gb = 1.5\nencrypt = true\n"
    )
    settings = load_site_config(path)
    assert settings.intake.admitted == {RejectReason.BURNED_IN_TEXT, RejectReason.TOO_SMALL}
    assert (settings.intake.limits.seconds, settings.intake.limits.workers) == (7.0, 3)
    store = SiteHome(tmp_path).store
    assert (store.budget_bytes, len(store.key or b"")) == (1_500_000_000, 32)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[intake]\nadmitt = []\n", ["intake.admitt", "unknown key", "admit"]),
        ("[imtake]\n", ["imtake", "unknown key", "intake"]),
        ('[intake]\nadmit = ["truncated"]\n', ["intake.admit", "'truncated'", *[r.value for r in POLICY_REASONS]]),
        ("[cache]\nbudget_gb = -1\n", ["cache.budget_gb", "greater than 0"]),
        ('[cache]\nencrypt = "yes"\n', ["cache.encrypt", "boolean"]),
        ("[cache\n", ["not valid TOML"]),
        (
            '[policy]\ntasks = ["rotate"]\n',
            ["policy.tasks", "'rotate'", "relative-location", "did you mean 'rotation'"],
        ),
        ('[policy]\nbackbones = ["vgg"]\n', ["policy.backbones", "'vgg'", "resnet50"]),
        ('[policy]\npresets = ["skin"]\n', ["policy.presets", "'skin'", "dermoscopy"]),
        ('[policy]\ncohorts = ["My Cohort"]\n', ["policy.cohorts"]),
        ('[policy]\ncoordinators = ["abc"]\n', ["policy.coordinators"]),
        ("[policy]\ncoordinators = []\n", ["policy.coordinators"]),
        ("[policy]\nmin_images = 4\n", ["policy.min_images", "greater than or equal to 5"]),
        ("[policy]\nmax_epochs_per_day = 0\n", ["policy.max_epochs_per_day"]),
        ("[policy]\nmax_epoch_per_day = 3\n", ["policy.max_epoch_per_day", "unknown key", "max_epochs_per_day"]),
        ('[schedule]\nhours = "8-17"\n', ["schedule.hours", "20:00-07:00"]),
        ('[schedule]\nhours = "08:00-08:00"\n', ["schedule.hours", "00:00-24:00"]),
        ('[schedule]\nhours = "25:00-08:00"\n', ["schedule.hours"]),
        ('[schedule]\ndays = ["monday"]\n', ["schedule.days", "'monday'", "mon, tue"]),
        ('[machine]\ndevice = "gpu"\n', ["machine.device"]),
        ("[machine]\nthreads = 0\n", ["machine.threads"]),
        ('[connection]\nproxy = "proxy:3128"\n', ["connection.proxy", "http://proxy.hospital:3128"]),
        ('[connection]\nproxy = "http://proxy:port"\n', ["connection.proxy"]),
        ("[connection]\nquickest_poll_s = 9\n", ["connection", "longer than slowest_poll_s"]),
    ],
)
def test_mistakes_in_settings_are_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_site_config(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_the_site_s_log_is_for_its_owner_only_and_goes_nowhere_else(tmp_path: Path, capfd) -> None:
    SiteHome(tmp_path / "home").log.error("DOE^JOHN")
    log = tmp_path / "home" / "site.log"
    assert "DOE^JOHN" in log.read_text() and log.stat().st_mode & 0o077 == 0
    assert "DOE" not in "".join(capfd.readouterr())

"""Making a federation, letting hospitals in and shutting them out."""

from __future__ import annotations

import ipaddress
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from aiseeme_models.errors import InputError
from federation_configs.membership import Membership, parse_membership, to_json
from federation_configs.signatures import load_signing_key, public_hex
from federation_configs.site_keys import (
    load_certificate,
    load_private,
    make_site_key,
    private_pem,
    public_pem,
    serial_text,
)
from server import provisioning
from server.certificates import Authority, certificate_pem
from server.doctor_federation import examine_federation
from server.federation_home import FederationHome, FederationSettings, check_settings, federation_home
from server.provisioning import (
    init_federation,
    invite,
    list_sites,
    make_kit,
    new_file,
    renew_servers,
    revoke,
    rotate,
    sign_request,
)
from server.site_registry import SiteRegistry

SETTINGS = FederationSettings(name="demo", hostname="fl.example.org")
BAD_NAMES = [
    "../x",
    "..",
    "",
    "a/b",
    "Alpha",
    "-a",
    "a" * 49,
    "a\n",
    "a b",
    "é",
    "a\x00",
    "gateway.example",
    "a\u202eb",
]


@pytest.fixture
def home(tmp_path: Path) -> FederationHome:
    return init_federation(tmp_path / "federation", SETTINGS)


def request_of(name: str, key: Any = None) -> bytes:
    """A request as any tool could make it."""
    key = key or make_site_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def certificate(membership: Membership) -> x509.Certificate:
    return load_certificate(membership.certificate or "", "test")


def aiseeme(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from server.cli import main; main()", *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "AISEEME_HOME"} | {"COLUMNS": "160"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


class TestMakingAFederation:
    def test_everything_is_there_and_the_private_files_are_their_owner_s(self, home: FederationHome) -> None:
        secrets = (home.authority_key, home.gateway_key, home.link_key, home.signing_key, home.superexec_secret)
        for path in secrets:
            assert path.stat().st_mode & 0o777 == 0o600, path
        for folder in (home.folder, home.authority_key.parent, home.gateway_folder, home.logs, home.runs):
            assert folder.stat().st_mode & 0o777 == 0o700, folder
        load_signing_key(home.signing_key)
        assert len(bytes.fromhex(home.superexec_secret.read_text())) == 32
        assert FederationHome(home.folder).config == SETTINGS
        assert list_sites(home) == []

    def test_the_certificates_hold_for_an_independent_verifier(self, home: FederationHome) -> None:
        """pyca's own verifier, which follows the web's rules: stricter than nginx and Python's ssl."""
        for authority, leaf, name in (
            (home.authority_certificate, home.gateway_certificate, x509.DNSName("fl.example.org")),
            (home.link_authority, home.link_certificate, x509.DNSName("localhost")),
            (home.link_authority, home.link_certificate, x509.IPAddress(ipaddress.ip_address("127.0.0.1"))),
        ):
            store = Store([x509.load_pem_x509_certificate(authority.read_bytes())])
            verifier = PolicyBuilder().store(store).build_server_verifier(name)
            verifier.verify(x509.load_pem_x509_certificate(leaf.read_bytes()), [])

    def test_certificates_last_as_long_as_promised(self, home: FederationHome) -> None:
        def days(path: Path) -> float:
            read = x509.load_pem_x509_certificate(path.read_bytes())
            return (read.not_valid_after_utc - read.not_valid_before_utc) / timedelta(days=1)

        assert 3652 <= days(home.authority_certificate) <= 3653
        assert days(home.gateway_certificate) <= 825 and days(home.link_certificate) <= 825

    def test_a_gateway_may_be_named_by_an_address(self, tmp_path: Path) -> None:
        home = init_federation(tmp_path / "home", FederationSettings(name="demo", hostname="192.0.2.7"))
        names = x509.load_pem_x509_certificate(home.gateway_certificate.read_bytes()).extensions
        found = names.get_extension_for_class(x509.SubjectAlternativeName).value
        assert found.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("192.0.2.7")]

    def test_one_that_is_there_is_not_touched(self, home: FederationHome) -> None:
        before = {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
        with pytest.raises(InputError, match="there is a federation already"):
            init_federation(home.folder, SETTINGS)
        assert {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()} == before

    def test_a_folder_of_something_else_is_not_touched(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("x")
        with pytest.raises(InputError, match="not empty"):
            init_federation(tmp_path, SETTINGS)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_one_that_lost_its_settings_is_not_overwritten(self, home: FederationHome) -> None:
        key = home.authority_key.read_bytes()
        home.settings_file.unlink()
        with pytest.raises(InputError, match="not empty"):
            init_federation(home.folder, SETTINGS)
        assert home.authority_key.read_bytes() == key

    @pytest.mark.parametrize("broken", ["_certify_gateway", "_certify_link", "create_signing_key", "write_atomically"])
    def test_an_interrupted_one_is_no_federation_and_can_be_repeated(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
    ) -> None:
        def crash(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(provisioning, broken, crash)
            with pytest.raises(KeyboardInterrupt):
                init_federation(tmp_path / "home", SETTINGS)
        with pytest.raises(InputError, match="no federation here"):
            invite(FederationHome(tmp_path / "home"), "alpha")
        home = init_federation(tmp_path / "home", SETTINGS)
        invite(home, "alpha")
        make_kit(home, "alpha").check("kit")
        assert not list(home.folder.glob("*unfinished*"))

    def test_a_process_that_is_killed_in_the_middle_leaves_what_can_be_repeated(self, tmp_path: Path) -> None:
        script = (
            "import os, signal, sys; from pathlib import Path; from server import provisioning as p\n"
            "p.create_signing_key = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
            "from server.federation_home import FederationSettings\n"
            "p.init_federation(Path(sys.argv[1]), FederationSettings(name='demo', hostname='h'))"
        )
        killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "home")], check=False, timeout=60)
        assert killed.returncode == -signal.SIGKILL
        invite(init_federation(tmp_path / "home", SETTINGS), "alpha")

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"hostname": "http://x"}, "DNS name"),
            ({"hostname": "FL.example.org"}, "DNS name"),
            ({"hostname": "999.1.1.1"}, "DNS name"),
            ({"hostname": "a;b"}, "DNS name"),
            ({"hostname": "a\nb"}, "DNS name"),
            ({"hostname": "h", "listen": "0.0.0.0; daemon on"}, "IP address"),
            ({"hostname": "h", "port": 0}, "port"),
            ({"hostname": "h", "colour": "red"}, "unknown key"),
            ({"hostname": "h", "name": "../x"}, "name"),
        ],
    )
    def test_mistakes_in_the_settings_are_named(self, given: dict[str, object], said: str) -> None:
        with pytest.raises(InputError, match=said):
            check_settings({"name": "demo"} | given, "federation.toml")

    def test_the_home_is_given_or_in_the_environment_or_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AISEEME_HOME", "elsewhere")
        assert federation_home(None).folder == Path("elsewhere")
        assert federation_home(Path("x")).folder == Path("x")
        monkeypatch.delenv("AISEEME_HOME")
        assert federation_home(None).folder == Path("federation")

    def test_gateway_and_superlink_can_have_new_certificates_and_sites_keep_theirs(self, home: FederationHome) -> None:
        invite(home, "alpha")
        kit, before = make_kit(home, "alpha"), home.gateway_certificate.read_bytes()
        renew_servers(home)
        assert home.gateway_certificate.read_bytes() != before
        assert home.authority_certificate.read_text() == kit.authority
        pairs = ((home.gateway_certificate, home.gateway_key), (home.link_certificate, home.link_key))
        for certificate_file, key in pairs:
            public = x509.load_pem_x509_certificate(certificate_file.read_bytes()).public_key()
            assert load_private(key.read_text(), "key").public_key() == public
            assert key.stat().st_mode & 0o777 == 0o600


class TestLettingIn:
    def test_a_hospital_that_makes_its_own_key(self, home: FederationHome) -> None:
        invitation = invite(home, "alpha")
        assert (invitation.kind, invitation.federation, invitation.site) == ("invitation", "demo", "alpha")
        assert invitation.gateway == "fl.example.org:8443"
        assert invitation.signing_key == public_hex(load_signing_key(home.signing_key).public_key())
        key = make_site_key()
        admission, _ = sign_request(home, request_of("alpha", key), "request")
        assert admission.kind == "admission"
        signed = certificate(admission)
        assert signed.public_key() == key.public_key()
        assert signed.subject.rfc4514_string() == "CN=alpha"
        uses = signed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert timedelta(days=364) < signed.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=365)
        (row,) = list_sites(home)
        assert (row.status, row.serial) == ("active", admission.serial)
        assert row.public_key_pem == public_pem(key.public_key())

    def test_an_invitation_is_the_same_however_often_it_is_made(self, home: FederationHome) -> None:
        assert invite(home, "alpha") == invite(home, "alpha")

    def test_a_kit_holds_everything(self, home: FederationHome) -> None:
        invite(home, "alpha")
        kit = parse_membership(to_json(make_kit(home, "alpha")), "kit")
        assert kit.kind == "kit"

    def test_whatever_else_a_request_asks_for_is_not_granted(self, home: FederationHome) -> None:
        invite(home, "alpha")
        key = make_site_key()
        greedy = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alpha")]))
            .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("fl.example.org")]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(key, hashes.SHA256())
        )
        signed = certificate(sign_request(home, greedy.public_bytes(Encoding.PEM), "request")[0])
        with pytest.raises(x509.ExtensionNotFound):
            signed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        uses = signed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_a_name_that_is_none(self, home: FederationHome, name: str) -> None:
        with pytest.raises(InputError, match="no name of a site"):
            invite(home, name)
        if name and "\x00" not in name:
            with pytest.raises(InputError, match=r"request: .* is no name of a site"):
                sign_request(home, request_of(name), "request")
        assert list_sites(home) == []

    def test_a_request_of_a_site_that_nobody_invited(self, home: FederationHome) -> None:
        invite(home, "alpha")
        with pytest.raises(InputError, match="no site 'beta'"):
            sign_request(home, request_of("beta"), "request")

    def test_a_request_that_somebody_changed(self, home: FederationHome) -> None:
        invite(home, "alpha")
        der = bytearray(x509.load_pem_x509_csr(request_of("alphb")).public_bytes(Encoding.DER))
        der[der.index(b"alphb") + 4] = ord("a")
        changed = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
        with pytest.raises(InputError, match="not signed with the key that it names"):
            sign_request(home, changed, "request")

    @pytest.mark.parametrize(
        "key",
        [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())],
        ids=["rsa", "p-256"],
    )
    def test_a_request_for_another_kind_of_key(self, home: FederationHome, key: Any) -> None:
        invite(home, "alpha")
        with pytest.raises(InputError, match="EC key on P-384"):
            sign_request(home, request_of("alpha", key), "request")

    @pytest.mark.parametrize("content", [b"", b"\x00\xff", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", b"{}"])
    def test_what_is_no_request(self, home: FederationHome, content: bytes) -> None:
        with pytest.raises(InputError, match="no certificate request"):
            sign_request(home, content, "request")

    def test_a_request_with_two_names(self, home: FederationHome) -> None:
        invite(home, "alpha")
        names = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in ("alpha", "beta")]
        made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
        content = made.sign(make_site_key(), hashes.SHA256()).public_bytes(Encoding.PEM)
        with pytest.raises(InputError, match="does not name one site"):
            sign_request(home, content, "request")

    def test_a_key_belongs_to_one_site_only(self, home: FederationHome) -> None:
        key = make_site_key()
        for name in ("alpha", "beta"):
            invite(home, name)
        sign_request(home, request_of("alpha", key), "request")
        with pytest.raises(InputError, match="key of the site alpha"):
            sign_request(home, request_of("beta", key), "request")
        assert [row.status for row in list_sites(home)] == ["active", "invited"]

    def test_a_site_has_one_certificate(self, home: FederationHome) -> None:
        invite(home, "alpha")
        sign_request(home, request_of("alpha"), "request")
        with pytest.raises(InputError, match="site rotate alpha"):
            sign_request(home, request_of("alpha"), "request")
        with pytest.raises(InputError, match="active already"):
            invite(home, "alpha")

    def test_a_site_s_certificate_does_not_outlive_the_authority(self) -> None:
        authority = Authority.make("short")
        signed = authority.certify_site("alpha", make_site_key().public_key(), days=10_000)
        assert signed.not_valid_after_utc == authority.certificate.not_valid_after_utc


class TestShuttingOut:
    def test_a_revoked_site_is_no_longer_active_and_its_key_never_comes_back(self, home: FederationHome) -> None:
        key = make_site_key()
        for name in ("alpha", "beta"):
            invite(home, name)
        sign_request(home, request_of("alpha", key), "request")
        assert revoke(home, "alpha").status == "revoked"
        assert SiteRegistry(home.sites_url).active() == []
        with pytest.raises(InputError, match="site add alpha"):
            sign_request(home, request_of("alpha", key), "request")
        again = invite(home, "alpha")
        assert again.renews is not None
        with pytest.raises(InputError, match="given up this key"):
            sign_request(home, request_of("alpha", key), "request")
        with pytest.raises(InputError, match="key of the site alpha"):
            sign_request(home, request_of("beta", key), "request")
        sign_request(home, request_of("alpha"), "request")
        assert [row.name for row in SiteRegistry(home.sites_url).active()] == ["alpha"]

    def test_revoking_twice_is_fine_and_nobody_is_a_mistake(self, home: FederationHome) -> None:
        invite(home, "alpha")
        assert revoke(home, "alpha") and revoke(home, "alpha")
        with pytest.raises(InputError, match="no site 'beta'"):
            revoke(home, "beta")

    def test_the_old_certificate_holds_until_the_new_one_is_signed(self, home: FederationHome) -> None:
        invite(home, "alpha")
        first = make_kit(home, "alpha")
        assert rotate(home, "alpha").renews == first.serial
        (row,) = SiteRegistry(home.sites_url).active()
        assert (row.serial, row.rotating) == (first.serial, True)
        second, _ = sign_request(home, request_of("alpha"), "request")
        (row,) = SiteRegistry(home.sites_url).active()
        assert row.serial == second.serial != first.serial and not row.rotating
        rotate(home, "alpha")
        with pytest.raises(InputError, match="given up this key"):  # the first key, once more
            sign_request(home, request_of("alpha", load_private(first.private_key or "", "kit")), "request")

    def test_only_an_active_site_is_rotated(self, home: FederationHome) -> None:
        invite(home, "alpha")
        with pytest.raises(InputError, match="no certificate yet"):
            rotate(home, "alpha")
        revoke(home, "alpha")
        with pytest.raises(InputError, match="revoked"):
            rotate(home, "alpha")

    def test_two_processes_may_change_the_list_at_once(self, home: FederationHome) -> None:
        """Of several that sign for one invited site, one succeeds."""
        names = [f"site-{number}" for number in range(6)]
        for name in names:
            invite(home, name)
        context = multiprocessing.get_context("spawn")
        with context.Pool(2) as pool:
            done = pool.map(_admit_all, [(home.sites_url, names, worker) for worker in range(2)])
        assert sorted(name for admitted in done for name in admitted) == names
        assert len(SiteRegistry(home.sites_url).active()) == 6


def _admit_all(given: tuple[str, list[str], int]) -> list[str]:
    url, names, worker = given
    registry, admitted = SiteRegistry(url), []
    for name in names:
        try:
            registry.admit(name, f"key of {name} at {worker}", "AB", datetime.now(UTC))
            admitted.append(name)
        except InputError:
            pass
    return admitted


@pytest.mark.parametrize("number", [1, 0xA, 0xAB, 0xABC, 2**159 - 1])
def test_a_serial_number_is_written_as_openssl_and_nginx_write_it(number: int) -> None:
    text = serial_text(number)
    assert int(text, 16) == number and len(text) % 2 == 0 and text == text.upper()


class TestMemberships:
    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2},
            {"site": "../x"},
            {"gateway": "https://x:1"},
            {"gateway": "x"},
            {"gateway": "x:0"},
            {"gateway": "x:65536"},
            {"gateway": "x:80\n"},
            {"gateway": "user@x:80"},
            {"signing_key": "AB" * 32},
            {"authority": "nothing"},
            {"authority": 7},
            {"colour": "red"},
            {"certificate": "nothing"},
            {"private_key": "x"},
        ],
    )
    def test_a_file_that_is_none_is_a_clear_mistake(self, home: FederationHome, change: dict[str, object]) -> None:
        good = json.loads(to_json(invite(home, "alpha")))
        with pytest.raises(InputError, match="^file: "):
            parse_membership(json.dumps(good | change), "file")

    @pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 10_000, '{"format":1}'])
    def test_so_is_what_is_no_json_or_lacks_everything(self, text: str) -> None:
        with pytest.raises(InputError, match="^file: no invitation, admission or kit"):
            parse_membership(text, "file")

    def test_parts_that_do_not_fit_are_noticed(self, home: FederationHome, tmp_path: Path) -> None:
        other = init_federation(tmp_path / "other", SETTINGS)
        for where in (home, other):
            invite(where, "alpha")
            invite(where, "beta")
        kit, foreign, beta = make_kit(home, "alpha"), make_kit(other, "alpha"), make_kit(home, "beta")
        for change, said in (
            ({"certificate": foreign.certificate}, "has not signed it"),
            ({"authority": foreign.authority}, "has not signed it"),
            ({"certificate": beta.certificate}, "not for the site 'alpha'"),
            ({"private_key": beta.private_key}, "does not belong to the certificate"),
            ({"private_key": home.signing_key.read_text()}, "EC key on P-384"),
            ({"certificate": None}, "a private key without a certificate"),
            ({"authority": kit.certificate}, "no certificate of an authority"),
            ({"authority": kit.authority + kit.authority}, "2 certificates"),
        ):
            with pytest.raises(InputError, match=said):
                parse_membership(to_json(kit.model_copy(update=change)), "file")


class TestDoctor:
    def findings(self, home: FederationHome, *, days: float) -> dict[str, tuple[bool, str]]:
        found = examine_federation(home, datetime.now(UTC) + timedelta(days=days))
        return {check.what: (check.ok, check.says) for check in found}

    def test_every_certificate_s_end_is_shown_warned_of_and_called_bad_once_it_has_come(
        self, home: FederationHome
    ) -> None:
        for name in ("alpha", "beta", "gamma"):
            invite(home, name)
        make_kit(home, "alpha")
        make_kit(home, "beta")
        revoke(home, "beta")
        today = self.findings(home, days=0)
        assert {"authority", "gateway", "superlink", "site alpha"} <= set(today)
        assert not {"site beta", "site gamma"} & set(today)
        today.pop("nginx", None)  # not every machine that tests this has one
        assert all(ok for ok, _ in today.values()) and not any("WARNING" in says for _, says in today.values())
        assert "365 days" in today["site alpha"][1]
        ok, says = self.findings(home, days=340)["site alpha"]
        assert ok and says.startswith("WARNING: the certificate ends in 25 days: `aiseeme site rotate alpha`")
        ok, says = self.findings(home, days=366)["site alpha"]
        assert not ok and "has ended" in says
        assert self.findings(home, days=800)["gateway"][1].startswith("WARNING")
        assert not self.findings(home, days=3700)["authority"][0]

    def test_private_files_that_others_may_read_or_that_are_missing_are_bad(self, home: FederationHome) -> None:
        home.signing_key.chmod(0o640)
        home.superexec_secret.unlink()
        home.gateway_certificate.write_text("nothing")
        findings = self.findings(home, days=0)
        assert findings["signing.key"] == (False, f"others may read it: chmod 600 {home.signing_key}")
        assert not findings["superexec.secret"][0] and not findings["gateway"][0]


class TestCommands:
    def test_from_nothing_to_a_list_of_sites(self, tmp_path: Path) -> None:
        made = aiseeme(tmp_path, "init", "fed", "--hostname", "fl.example.org", "--listen", "127.0.0.1")
        assert made.returncode == 0, made.stderr
        assert "fl.example.org:8443" in made.stdout and "aiseeme site add NAME" in made.stdout
        home = FederationHome(tmp_path / "fed")
        added = aiseeme(tmp_path, "site", "add", "alpha", "--federation", "fed")
        assert added.returncode == 0 and "alpha.invitation.json" in added.stdout
        (tmp_path / "alpha.request.pem").write_bytes(request_of("alpha"))
        signed = aiseeme(tmp_path, "site", "sign", "alpha.request.pem", "--federation", "fed")
        assert signed.returncode == 0, signed.stderr
        parse_membership((tmp_path / "alpha.admission.json").read_bytes(), "admission")
        kit = aiseeme(tmp_path, "site", "add", "beta", "--kit", "--federation", "fed")
        assert kit.returncode == 0 and "private key" in kit.stdout
        assert (tmp_path / "beta.kit.json").stat().st_mode & 0o777 == 0o600
        assert aiseeme(tmp_path, "site", "revoke", "beta", "--federation", "fed").returncode == 0
        listed = aiseeme(tmp_path, "site", "list", "--federation", "fed", "--json")
        rows = json.loads(listed.stdout)
        assert [(row["name"], row["status"]) for row in rows] == [("alpha", "active"), ("beta", "revoked")]
        assert 364 < rows[0]["days_left"] <= 365 and "BEGIN" not in listed.stdout
        shown = aiseeme(tmp_path, "site", "list", "--federation", "fed").stdout
        assert "alpha" in shown and "revoked" in shown
        rotated = aiseeme(tmp_path, "site", "rotate", "alpha", "--kit", "--federation", "fed")
        assert rotated.returncode == 0, rotated.stderr
        assert (
            SiteRegistry(home.sites_url).get("alpha").serial
            == Membership.model_validate_json((tmp_path / "alpha.kit.json").read_bytes()).serial
        )
        assert aiseeme(tmp_path, "gateway", "renew", "--federation", "fed").returncode == 0

    def test_no_file_is_overwritten_and_then_nothing_else_is_done_either(self, home: FederationHome) -> None:
        folder = home.folder.parent
        (folder / "alpha.invitation.json").write_text("mine")
        refused = aiseeme(folder, "site", "add", "alpha")
        assert refused.returncode == 2 and "not overwritten" in refused.stderr
        assert (folder / "alpha.invitation.json").read_text() == "mine"
        assert list_sites(home) == []

    @pytest.mark.parametrize("name", ["../x", "A", "a" * 49])
    def test_a_name_that_is_none_makes_no_file(self, home: FederationHome, name: str) -> None:
        folder = home.folder.parent
        before = sorted(folder.rglob("*"))
        assert aiseeme(folder, "site", "add", name, "--kit").returncode == 2
        (folder / "request.pem").write_bytes(request_of(name))
        assert aiseeme(folder, "site", "sign", "request.pem").returncode == 2
        (folder / "request.pem").unlink()
        assert sorted(folder.rglob("*")) == before

    def test_what_is_refused_leaves_no_file(self, home: FederationHome) -> None:
        folder = home.folder.parent
        (folder / "r.pem").write_bytes(request_of("alpha"))
        assert aiseeme(folder, "site", "sign", "r.pem").returncode == 2
        assert not (folder / "alpha.admission.json").exists()

    def test_without_a_federation_the_way_to_one_is_said(self, tmp_path: Path) -> None:
        for command in (("list",), ("add", "alpha"), ("revoke", "alpha"), ("rotate", "alpha")):
            refused = aiseeme(tmp_path, "site", *command)
            assert refused.returncode == 2 and "aiseeme init" in refused.stderr
        assert list(tmp_path.iterdir()) == []


def test_a_new_file_is_gone_where_what_goes_with_it_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_file(tmp_path / "x") as file:
        file.write(b"half")
        raise RuntimeError
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="--out"), new_file(Path("/dev/null")):
        pass


def test_a_request_s_key_must_be_p_384_when_read_back_too() -> None:
    with pytest.raises(InputError, match="EC key on P-384"):
        load_private(private_pem(ec.generate_private_key(ec.SECP256R1())), "key")
    assert certificate_pem(Authority.make("x").certificate).startswith("-----BEGIN CERTIFICATE")

"""How a hospital joins: its key stays at home, and nobody but the federation that invited it can let it in."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aiseeme_models.errors import InputError
from client import joining
from client.joining import join
from client.ledger import Ledger
from client.membership import load_membership
from client.site_home import SiteHome
from federation_configs.membership import MOST_BYTES, Membership, parse_membership, read_membership, to_json
from federation_configs.signatures import public_hex
from federation_configs.site_keys import private_pem, serial_text


class Coordinator:
    """The other side, of `cryptography` alone: a hospital's code must not need the coordinator's."""

    def __init__(self, folder: Path, federation: str = "demo") -> None:
        self.folder, self.federation = folder, federation
        folder.mkdir()
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{federation} authority")])
        self.certificate = self._certify(self.name, self.key.public_key(), authority=True)
        self.signing_key = os.urandom(32).hex()

    def _certify(self, name: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool = False) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=100))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .sign(self.key, hashes.SHA384())
        )

    def membership(self, site: str, **more: str) -> Membership:
        authority = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        facts = {"federation": self.federation, "gateway": "fl.example.org:8443", "signing_key": self.signing_key}
        return Membership(site=site, authority=authority, **facts, **more)  # type: ignore[arg-type]

    def write(self, membership: Membership, name: str = "") -> Path:
        path = self.folder / (name or f"{membership.site}.{membership.kind}.json")
        path.write_bytes(to_json(membership))
        return path

    def invite(self, site: str = "alpha", **more: str) -> Path:
        return self.write(self.membership(site, **more))

    def sign(self, request: str, site: str = "alpha") -> Membership:
        asked = x509.load_pem_x509_csr(request.encode())
        assert asked.is_signature_valid
        key = asked.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        signed = self._certify(asked.subject, key)
        return self.membership(site, certificate=signed.public_bytes(serialization.Encoding.PEM).decode())

    def kit(self, site: str = "alpha") -> Path:
        key = ec.generate_private_key(ec.SECP384R1())
        signed = self._certify(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)]), key.public_key())
        certificate = signed.public_bytes(serialization.Encoding.PEM).decode()
        return self.write(self.membership(site, certificate=certificate, private_key=private_pem(key)))


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path / "coordinator")


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return SiteHome(tmp_path / "site")


def joined(home: SiteHome, coordinator: Coordinator) -> Membership:
    """Join with an invitation and the admission that comes back."""
    asked = join(home, coordinator.invite())
    admission = coordinator.sign(asked.request or "")
    join(home, coordinator.write(admission))
    return admission


def private_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


class TestAKeyOfItsOwn:
    def test_the_request_holds_the_name_and_the_key_and_no_secret(
        self, home: SiteHome, coordinator: Coordinator
    ) -> None:
        asked = join(home, coordinator.invite())
        assert asked.done == "requested" and asked.request is not None
        request = x509.load_pem_x509_csr(asked.request.encode())
        assert request.subject.rfc4514_string() == "CN=alpha"
        assert isinstance(request.public_key(), ec.EllipticCurvePublicKey)
        assert request.public_key().key_size == 384
        (key,) = private_files(home.folder)
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((home.folder / "membership").stat().st_mode) == 0o700
        own = serialization.load_pem_private_key(key.read_bytes(), None)
        assert own.public_key() == request.public_key()

    def test_the_same_invitation_gives_the_same_request(self, home: SiteHome, coordinator: Coordinator) -> None:
        first = join(home, coordinator.invite())
        assert join(home, coordinator.invite()) == first
        moved = coordinator.membership("alpha").model_copy(update={"gateway": "new.example.org:443"})
        assert join(home, coordinator.write(moved)).request == first.request

    def test_one_that_was_interrupted_is_begun_again(
        self, home: SiteHome, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*_: object) -> bytes:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(joining, "to_json", crash)
            with pytest.raises(KeyboardInterrupt):
                join(home, coordinator.invite())
        admission = joined(home, coordinator)
        assert load_membership(home).file.certificate == admission.certificate

    def test_until_the_admission_comes_the_site_says_what_it_waits_for(
        self, home: SiteHome, coordinator: Coordinator
    ) -> None:
        with pytest.raises(InputError, match="has not joined.*aiseeme-site join"):
            load_membership(home)
        join(home, coordinator.invite())
        with pytest.raises(InputError, match="waits for its admission"):
            load_membership(home)


class TestBeingAdmitted:
    def test_what_the_node_and_tls_need_is_there(self, home: SiteHome, coordinator: Coordinator) -> None:
        admission = joined(home, coordinator)
        site = load_membership(home)
        assert (site.site, site.federation) == ("alpha", "demo")
        assert (site.gateway_host, site.gateway_port) == ("fl.example.org", 8443)
        assert site.signing_key_hex == coordinator.signing_key == public_hex(site.signing_key)
        assert 99 < site.days_left <= 100 and site.expires.utcoffset() == timedelta(0)
        certificate = x509.load_pem_x509_certificate(site.certificate_file.read_bytes())
        assert serial_text(certificate.serial_number) == admission.serial
        # As flower-supernode reads its key, and as a TLS library reads it: the same one.
        node_key = serialization.load_ssh_private_key(site.node_key_file.read_bytes(), None)
        tls_key = serialization.load_pem_private_key(site.key_file.read_bytes(), None)
        assert isinstance(node_key, ec.EllipticCurvePrivateKey)
        assert node_key.public_key() == tls_key.public_key() == certificate.public_key()
        assert site.authority_file.read_text() == admission.authority
        for path in private_files(home.folder):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert sorted(path.name for path in private_files(home.folder)) == ["key.pem", "node.key"]
        assert "PRIVATE" not in (site.folder / "membership.json").read_text()

    def test_the_ledger_knows(self, home: SiteHome, coordinator: Coordinator) -> None:
        admission = joined(home, coordinator)
        (entry,) = Ledger.in_home(home.folder).entries()
        assert entry.kind == "joined"
        assert entry.fields["coordinator"] == coordinator.signing_key
        assert entry.fields["certificate"] == admission.serial

    def test_a_kit_is_all_it_takes(self, home: SiteHome, coordinator: Coordinator) -> None:
        assert join(home, coordinator.kit()).done == "joined"
        assert load_membership(home).site == "alpha"

    def test_an_admission_that_names_another_authority(
        self, home: SiteHome, coordinator: Coordinator, tmp_path: Path
    ) -> None:
        """Somebody on the way signs the hospital's key with an authority of their own."""
        asked = join(home, coordinator.invite())
        attacker = Coordinator(tmp_path / "attacker")
        forged = attacker.sign(asked.request or "")
        before = files(home.folder)
        for replace in (False, True):
            with pytest.raises(InputError, match="authority is not the one of the invitation"):
                join(home, attacker.write(forged), replace=replace)
        only_key = coordinator.sign(asked.request or "").model_copy(update={"signing_key": attacker.signing_key})
        with pytest.raises(InputError, match="signing key is not the one of the invitation"):
            join(home, attacker.write(only_key))
        mixed = forged.model_copy(update={"authority": coordinator.membership("alpha").authority})
        with pytest.raises(InputError, match="has not signed it"):
            join(home, attacker.write(mixed))
        assert files(home.folder) == before

    def test_an_admission_for_another_key_site_or_federation(
        self, home: SiteHome, coordinator: Coordinator, tmp_path: Path
    ) -> None:
        asked = join(home, coordinator.invite())
        other = join(SiteHome(tmp_path / "other"), coordinator.invite())
        with pytest.raises(InputError, match="for another key"):
            join(home, coordinator.write(coordinator.sign(other.request or "")))
        beta = join(SiteHome(tmp_path / "beta"), coordinator.invite("beta"))
        with pytest.raises(InputError, match="for the site beta, this one is alpha"):
            join(home, coordinator.write(coordinator.sign(beta.request or "", "beta")))
        renamed = coordinator.sign(asked.request or "").model_copy(update={"federation": "other"})
        with pytest.raises(InputError, match="federation other, this site's is demo"):
            join(home, coordinator.write(renamed))

    def test_an_admission_without_a_request(self, home: SiteHome, coordinator: Coordinator, tmp_path: Path) -> None:
        other = join(SiteHome(tmp_path / "other"), coordinator.invite())
        with pytest.raises(InputError, match="has not applied"):
            join(home, coordinator.write(coordinator.sign(other.request or "")))

    @pytest.mark.parametrize("content", [b"", b"\x00\x01", b"{}", b"[]", b"PK\x03\x04", b"x" * (MOST_BYTES + 1)])
    def test_a_file_of_something_else(self, home: SiteHome, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(InputError, match="file: "):
            join(home, tmp_path / "file")
        assert not home.folder.exists()

    def test_a_folder_or_nothing(self, home: SiteHome, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no file"):
            join(home, tmp_path)
        with pytest.raises(InputError, match="no such file"):
            join(home, tmp_path / "nothing")

    @pytest.mark.parametrize("name", ["../../x", "..", "a/b", "Alpha", "a" * 49, "a\u0000b"])
    def test_a_name_with_which_a_file_would_leave_its_place(
        self, home: SiteHome, coordinator: Coordinator, name: str
    ) -> None:
        path = coordinator.invite()
        path.write_text(json.dumps(json.loads(path.read_text()) | {"site": name}))
        with pytest.raises(InputError, match="site: "):
            join(home, path)
        assert not home.folder.exists()


class TestLater:
    def test_a_new_key_is_made_for_a_new_certificate_and_the_old_one_serves_until_then(
        self, home: SiteHome, coordinator: Coordinator
    ) -> None:
        first = joined(home, coordinator)
        asked = join(home, coordinator.invite(renews=first.serial or ""))
        assert asked.request == join(home, coordinator.invite(renews=first.serial or "")).request
        assert load_membership(home).file.certificate == first.certificate
        second = coordinator.sign(asked.request or "")
        join(home, coordinator.write(second))
        now = load_membership(home)
        assert now.file.certificate == second.certificate
        own = serialization.load_pem_private_key(now.key_file.read_bytes(), None)
        assert own.public_key() == x509.load_pem_x509_certificate((second.certificate or "").encode()).public_key()
        assert len(private_files(home.folder)) == 2, "the former key is gone"

    def test_a_renewed_certificate_for_the_same_key_takes_the_place_of_the_old_one(
        self, home: SiteHome, coordinator: Coordinator
    ) -> None:
        asked = join(home, coordinator.invite())
        join(home, coordinator.write(coordinator.sign(asked.request or "")))
        key = load_membership(home).key_file.read_bytes()
        renewed = coordinator.sign(asked.request or "")
        join(home, coordinator.write(renewed))
        assert load_membership(home).file.certificate == renewed.certificate
        assert load_membership(home).key_file.read_bytes() == key
        join(home, coordinator.write(renewed))
        assert load_membership(home).file.certificate == renewed.certificate

    def test_an_interrupted_change_leaves_the_one_or_the_other(
        self, home: SiteHome, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = joined(home, coordinator)
        asked = join(home, coordinator.invite(renews=first.serial or ""))
        second = coordinator.write(coordinator.sign(asked.request or ""))
        for step in ("openssh_pem", "to_json", "_point_to", "flush_folder"):

            def crash(*_: object) -> None:
                raise KeyboardInterrupt

            with monkeypatch.context() as patched:
                patched.setattr(joining, step, crash)
                with pytest.raises(KeyboardInterrupt):
                    join(home, second)
            site = load_membership(home)
            own = serialization.load_pem_private_key(site.key_file.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(site.certificate_file.read_bytes())
            assert own.public_key() == certificate.public_key()
        join(home, second)
        assert load_membership(home).file == read_membership(second)
        assert len(private_files(home.folder)) == 2

    def test_another_federation_s_file_changes_nothing_unless_it_is_meant(
        self, home: SiteHome, coordinator: Coordinator, tmp_path: Path
    ) -> None:
        joined(home, coordinator)
        other = Coordinator(tmp_path / "second", "second")
        before = files(home.folder)
        for path in (other.invite(), other.kit()):
            with pytest.raises(InputError, match="federation second, this site's is demo.*--replace"):
                join(home, path)
        assert files(home.folder) == before
        asked = join(home, other.invite(), replace=True)
        assert load_membership(home).federation == "demo"
        join(home, other.write(other.sign(asked.request or "")))
        assert load_membership(home).federation == "second"
        join(home, coordinator.kit(), replace=True)
        assert load_membership(home).federation == "demo"

    def test_another_federation_s_invitation_while_one_waits(
        self, home: SiteHome, coordinator: Coordinator, tmp_path: Path
    ) -> None:
        first = join(home, coordinator.invite())
        other = Coordinator(tmp_path / "attacker")
        for path in (other.invite(), other.kit()):
            with pytest.raises(InputError, match="authority is not the one"):
                join(home, path)
        assert join(home, coordinator.invite()) == first

    def test_the_first_invitation_once_more_is_a_mistake_that_is_explained(
        self, home: SiteHome, coordinator: Coordinator
    ) -> None:
        joined(home, coordinator)
        with pytest.raises(InputError, match=r"has joined demo already; .*site rotate"):
            join(home, coordinator.invite())

    @pytest.mark.parametrize("name", ["key_file", "node_key_file"])
    def test_a_key_that_others_may_read_is_refused_and_the_remedy_said(
        self, home: SiteHome, coordinator: Coordinator, name: str
    ) -> None:
        joined(home, coordinator)
        path: Path = getattr(load_membership(home), name)
        path.chmod(0o640)
        with pytest.raises(InputError, match=f"chmod 600 {path}"):
            load_membership(home)
        path.chmod(0o600)
        load_membership(home)

    def test_a_key_that_was_lost_or_mixed_up_is_noticed(self, home: SiteHome, coordinator: Coordinator) -> None:
        joined(home, coordinator)
        path = load_membership(home).key_file
        path.write_text(private_pem(ec.generate_private_key(ec.SECP384R1())))
        with pytest.raises(InputError, match="not the key of the site's certificate"):
            load_membership(home)
        path.unlink()
        with pytest.raises(InputError, match="missing"):
            load_membership(home)
        join(home, coordinator.kit(), replace=True)
        load_membership(home)


def site(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from client.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_shows_what_is_compared_by_telephone(coordinator: Coordinator, tmp_path: Path) -> None:
    asked = site(tmp_path, "join", coordinator.invite(), "--home", "here")
    assert asked.returncode == 0, asked.stderr
    fingerprint = coordinator.certificate.fingerprint(hashes.SHA256()).hex()
    shown = asked.stdout.replace(" ", "")
    assert fingerprint in shown and coordinator.signing_key in shown and "telephone" in asked.stdout
    request = (tmp_path / "alpha.request.pem").read_text()
    assert site(tmp_path, "join", coordinator.invite(), "--home", "here").returncode == 0
    assert (tmp_path / "alpha.request.pem").read_text() == request
    done = site(tmp_path, "join", coordinator.write(coordinator.sign(request)), "--home", "here", "--json")
    facts = json.loads(done.stdout)
    assert (facts["done"], facts["site"]) == ("joined", "alpha")
    assert "PRIVATE" not in asked.stdout + done.stdout


def test_the_command_overwrites_no_file(coordinator: Coordinator, tmp_path: Path) -> None:
    (tmp_path / "alpha.request.pem").write_text("mine")
    refused = site(tmp_path, "join", coordinator.invite(), "--home", "here")
    assert refused.returncode == 2 and "not overwritten" in refused.stderr
    assert (tmp_path / "alpha.request.pem").read_text() == "mine"
    assert site(tmp_path, "join", coordinator.invite(), "--home", "here", "--out", "other.pem").returncode == 0


def test_a_terminal_is_not_steered_by_what_a_file_says(coordinator: Coordinator, tmp_path: Path) -> None:
    path = coordinator.invite()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gateway": "\x1b[2Jx:1", "\x1b[31m": 1}))
    refused = site(tmp_path, "join", path, "--home", "here")
    assert refused.returncode == 2 and "\x1b" not in refused.stderr + refused.stdout
    with pytest.raises(InputError):
        parse_membership(path.read_bytes(), "file")

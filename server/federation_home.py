"""The folder of a federation: its settings, authority, keys, database, gateway and runs."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from functools import cached_property
from pathlib import Path

import tomli_w
from pydantic import Field, ValidationError, field_validator

from aiseeme_models.errors import InputError
from aiseeme_models.options import Options
from federation_configs.membership import check_hostname
from federation_configs.names import NAME
from server.run_folder import FEDERATION_VARIABLE

SETTINGS = "federation.toml"
DEFAULT_PORT = 8443


class FederationSettings(Options):
    """``federation.toml``."""

    name: str = Field(pattern=NAME, description="the federation's name, in every certificate and request")
    hostname: str = Field(description="the name or IPv4 address under which hospitals reach the gateway")
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65_535, description="the gateway's port, the only open one")
    listen: str = Field(default="0.0.0.0", description="the address of this machine on which the gateway listens")
    site_days: int = Field(default=365, ge=1, le=825, description="days for which a site's certificate is good")

    @field_validator("hostname")
    @classmethod
    def _host(cls, name: str) -> str:
        return check_hostname(name)

    @field_validator("listen")
    @classmethod
    def _address(cls, address: str) -> str:
        try:
            return str(ipaddress.ip_address(address))
        except ValueError:
            raise ValueError("an IP address of this machine, or 0.0.0.0 for all of them") from None

    @property
    def gateway(self) -> str:
        """``host:port``, as hospitals connect to it."""
        return f"{self.hostname}:{self.port}"


def check_settings(given: dict[str, object], where: str) -> FederationSettings:
    """Settings from a table.

    Raises:
        InputError: every key that is wrong.
    """
    try:
        return FederationSettings.model_validate(given)
    except ValidationError as error:
        faults = []
        for fault in error.errors(include_url=False, include_input=False, include_context=False):
            key = ".".join(map(str, fault["loc"]))
            unknown = f"unknown key; there are {', '.join(FederationSettings.model_fields)}"
            what = unknown if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
            faults.append(f"{where}: {key}: {what}")
        raise InputError("\n".join(faults)) from None


def federation_home(given: Path | None) -> FederationHome:
    """The home given, else ``$AISEEME_HOME``, else ``federation`` here."""
    return FederationHome(given or Path(os.environ.get(FEDERATION_VARIABLE, "federation")))


class FederationHome:
    """Where everything of a federation is. Only its owner may read it.

    Args:
        folder: made by ``aiseeme init``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_runs(cls, runs: Path) -> FederationHome:
        """The federation whose folder of runs ``runs`` is, if it is one's."""
        return cls(runs.resolve().parent)

    @property
    def settings_file(self) -> Path:
        """``federation.toml``; written last, so that a home that has it is whole."""
        return self.folder / SETTINGS

    @cached_property
    def config(self) -> FederationSettings:
        """The federation's settings.

        Raises:
            InputError: there is no federation here, or a mistake in ``federation.toml``.
        """
        if not self.settings_file.is_file():
            raise InputError(
                f"{self.folder}: no federation here; `aiseeme init {self.folder} --hostname NAME` makes one, "
                f"--federation or ${FEDERATION_VARIABLE} names another folder"
            )
        try:
            given = tomllib.loads(self.settings_file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.settings_file}: not valid TOML: {error}") from None
        return check_settings(given, str(self.settings_file))

    @property
    def authority_certificate(self) -> Path:
        """The CA of the gateway and the sites."""
        return self.folder / "keys" / "authority.pem"

    @property
    def authority_key(self) -> Path:
        """Its private key."""
        return self.folder / "keys" / "authority.key"

    @property
    def gateway_certificate(self) -> Path:
        """The gateway's certificate."""
        return self.folder / "keys" / "gateway.pem"

    @property
    def gateway_key(self) -> Path:
        """Its private key."""
        return self.folder / "keys" / "gateway.key"

    @property
    def link_authority(self) -> Path:
        """The CA that signed the SuperLink's certificate and nothing else; its key was not kept."""
        return self.folder / "keys" / "link-authority.pem"

    @property
    def link_certificate(self) -> Path:
        """The SuperLink's certificate, for loopback."""
        return self.folder / "keys" / "link.pem"

    @property
    def link_key(self) -> Path:
        """Its private key."""
        return self.folder / "keys" / "link.key"

    @property
    def signing_key(self) -> Path:
        """The Ed25519 key that signs requests and models."""
        return self.folder / "keys" / "signing.key"

    @property
    def superexec_secret(self) -> Path:
        """What it takes to claim a task of the SuperLink, in hexadecimal."""
        return self.folder / "keys" / "superexec.secret"

    @property
    def database(self) -> Path:
        """The SuperLink's SQLite file."""
        return self.folder / "superlink.sqlite"

    @property
    def sites_url(self) -> str:
        """Where the registry of sites is."""
        return f"sqlite:///{(self.folder / 'sites.sqlite').resolve()}"

    @property
    def gateway_folder(self) -> Path:
        """What nginx reads and writes."""
        return self.folder / "gateway"

    @property
    def logs(self) -> Path:
        """What the coordinator's processes say."""
        return self.folder / "logs"

    @property
    def runs(self) -> Path:
        """The folder of this federation's runs."""
        return self.folder / "runs"


def to_toml(settings: FederationSettings) -> bytes:
    """``federation.toml``, every setting with what it means."""
    lines = []
    for key, value in settings.model_dump(mode="json").items():
        lines.append(f"# {FederationSettings.model_fields[key].description}\n{tomli_w.dumps({key: value})}")
    return "\n".join(lines).encode()

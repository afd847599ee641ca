"""Which hospitals there are: invited, active or revoked, with the one key and certificate that each may use."""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Field, Session, SQLModel, col, select, update

from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.printable import printable
from federation_configs.names import NAME
from server.database import cause, commit, now_text, open_database

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

SiteStatus = Literal["invited", "active", "revoked"]


class SiteRow(SQLModel, table=True):
    """A hospital. Times are ISO 8601 in UTC.

    Attributes:
        status: ``invited``, ``active`` or ``revoked``.
        public_key_pem: its key, as its Flower node sends it; empty before the first certificate and once revoked.
        serial: of its certificate, as nginx writes it (upper-case hexadecimal); the last one's where it is revoked.
        expires: when that certificate ends.
        rotating: whether a new certificate may be signed while this one is still good.
        changed: when anything of the row last changed.
    """

    __tablename__ = "sites"

    name: str = Field(primary_key=True)
    status: str = "invited"
    public_key_pem: str = ""
    serial: str = ""
    expires: str = ""
    rotating: bool = False
    created: str
    changed: str


class SiteKeyRow(SQLModel, table=True):
    """A key that a site has or had: one that was given up is never accepted again, nor is one at two sites."""

    __tablename__ = "site_keys"

    sha256: str = Field(primary_key=True)
    site: str
    retired: bool = False


class SiteRegistry:
    """The sites of one federation. Several processes may use it at once.

    Args:
        url: for instance ``sqlite:///federation/sites.sqlite``; the folder must exist.

    Raises:
        InputError: the database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_database(url, [SiteRow, SiteKeyRow])

    def invite(self, name: str) -> SiteRow:
        """Enter a hospital, or let one that was revoked apply again, with another key.

        Raises:
            InputError: ``name`` is no name, or the site is active.
        """
        check_site_name(name)
        with self._changing(name) as (session, row):
            if row is None:
                row = SiteRow(name=name, created=now_text(), changed=now_text())
            elif row.status == "active":
                raise InputError(
                    f"{name} is active already: `aiseeme site rotate {name}` for a new certificate, "
                    f"`aiseeme site revoke {name}` to shut it out"
                )
            row.status = "invited"
            session.add(row)
        return row

    def admit(self, name: str, public_key: str, serial: str, expires: datetime) -> SiteRow:
        """Note the certificate of an invited site, or the next one of a site that is rotating.

        Args:
            name: the site's.
            public_key: PEM, as `federation_configs.site_keys.public_pem` writes it.
            serial: the certificate's, as `federation_configs.site_keys.serial_text` writes it.
            expires: when the certificate ends.

        Raises:
            InputError: the site is not waiting for one, or the key is or was another's, or was given up.
        """
        with self._changing(name) as (session, row):
            if row is None or row.status == "revoked":
                raise _unknown(name, row)
            if row.status == "active" and not row.rotating:
                raise InputError(
                    f"{name} has its certificate already: `aiseeme site rotate {name}` lets it have another"
                )
            digest = _digest(public_key)
            known = session.get(SiteKeyRow, digest)
            if known is not None and known.site != name:
                raise InputError(f"this is the key of the site {known.site}; every site needs a key of its own")
            if known is not None and known.retired:
                raise InputError(f"{name} has given up this key: it needs a new one")
            _retire(session, name)
            session.merge(SiteKeyRow(sha256=digest, site=name))
            row.status, row.rotating, row.public_key_pem, row.serial = "active", False, public_key, serial
            row.expires = expires.isoformat(timespec="seconds")
            session.add(row)
        return row

    def rotate(self, name: str) -> SiteRow:
        """Let an active site have another certificate; the present one is good until the next is signed.

        Raises:
            InputError: the site is not active.
        """
        with self._changing(name) as (session, row):
            if row is None or row.status != "active":
                raise _unknown(name, row)
            row.rotating = True
            session.add(row)
        return row

    def revoke(self, name: str) -> SiteRow:
        """Shut a site out; its key is never accepted again.

        Raises:
            InputError: there is no such site.
        """
        with self._changing(name) as (session, row):
            if row is None:
                raise _unknown(name, row)
            _retire(session, name)
            row.status, row.rotating, row.public_key_pem = "revoked", False, ""
            session.add(row)
        return row

    def get(self, name: str) -> SiteRow:
        """One site.

        Raises:
            InputError: there is no such site.
        """
        with Session(self._engine, expire_on_commit=False) as session:
            row = session.get(SiteRow, name)
        if row is None:
            raise _unknown(name, row)
        return row

    def list(self) -> list[SiteRow]:
        """All sites, by name."""
        with Session(self._engine, expire_on_commit=False) as session:
            return [*session.exec(select(SiteRow).order_by(SiteRow.name)).all()]

    def active(self) -> Sequence[SiteRow]:
        """The sites that may connect, by name."""
        with Session(self._engine, expire_on_commit=False) as session:
            active = select(SiteRow).where(col(SiteRow.status) == "active").order_by(SiteRow.name)
            return session.exec(active).all()

    def names_by_key(self) -> dict[bytes, str]:
        """The names of the sites that may connect, by public key as their nodes send it (PEM)."""
        return {row.public_key_pem.encode(): row.name for row in self.active()}

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def _changing(self, name: str) -> Iterator[tuple[Session, SiteRow | None]]:
        """A site's row, with nobody else writing; what was changed is written on leaving, but not after an error."""
        with Session(self._engine, expire_on_commit=False) as session:
            # The write comes first: SQLite refuses to turn a read into a write once another process has written.
            try:
                session.exec(update(SiteRow).where(col(SiteRow.name) == name).values(changed=now_text()))
                row = session.get(SiteRow, name)
                yield session, row
                session.flush()
            except SQLAlchemyError as error:
                raise RunFailed(f"the registry could not be written: {cause(error)}") from error
            commit(session)


def check_site_name(name: str) -> None:
    """Check that ``name`` may be a site's.

    Raises:
        InputError: it may not.
    """
    if not re.fullmatch(NAME, name):
        raise InputError(
            f"{printable(name, 60)!r} is no name of a site: 1 to 48 small letters, digits and hyphens, "
            "with a letter or digit first"
        )


def _retire(session: Session, name: str) -> None:
    session.exec(update(SiteKeyRow).where(col(SiteKeyRow.site) == name).values(retired=True))


def _digest(public_key: str) -> str:
    return hashlib.sha256(public_key.encode()).hexdigest()


def _unknown(name: str, row: SiteRow | None) -> InputError:
    shown = printable(name, 60)
    if row is None:
        return InputError(f"there is no site {shown!r}: `aiseeme site list` shows them, `aiseeme site add` adds one")
    if row.status == "revoked":
        return InputError(f"{shown} is revoked: `aiseeme site add {shown}` lets it apply again, with a new key")
    return InputError(f"{shown} has no certificate yet: `aiseeme site sign` signs its request")

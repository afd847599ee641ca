"""How a site says no, or that something broke, without saying anything of its own."""

from __future__ import annotations

import contextlib
import errno

from flwr.app import Error, Message

from aiseeme_models.errors import is_out_of_memory
from client.charges import BudgetBroken
from client.ledger_chain import LedgerBroken
from client.site import Site
from federation_configs.records import MalformedRecord, nonce_of
from federation_configs.site_errors import SiteError, error_reason


class Refusal(Exception):
    """The site does not do what was asked; only the code leaves."""

    def __init__(self, code: SiteError) -> None:
        super().__init__(code.sentence)
        self.code = code


def code_of(error: BaseException) -> SiteError:
    """The code that leaves the site for an exception; nothing else of it does."""
    if isinstance(error, Refusal):
        return error.code
    if isinstance(error, MalformedRecord):
        return SiteError.BAD_REQUEST
    if isinstance(error, LedgerBroken):
        return SiteError.LEDGER_BROKEN
    if isinstance(error, BudgetBroken):
        return SiteError.BUDGET_BROKEN
    if is_out_of_memory(error):
        return SiteError.OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SiteError.DISK_FULL
    return SiteError.INTERNAL


def error_reply(code: SiteError, message: Message) -> Message:
    """The answer to a message that is not done as asked: a code, its fixed sentence, and the message's own nonce."""
    nonce = nonce_of(message.content) if message.has_content() else None
    return Message(Error(int(code), error_reason(code, nonce)), reply_to=message)


def note(site: Site, code: SiteError, error: BaseException) -> None:
    """Enter what happened in the site's own log; a log that cannot be written must not keep the answer back."""
    expected = isinstance(error, (Refusal, MalformedRecord))
    with contextlib.suppress(OSError):
        if expected:
            site.log.warning("request refused: %s (%s)", code.sentence, error)
        else:
            site.log.error("request failed: %s", code.sentence, exc_info=error)

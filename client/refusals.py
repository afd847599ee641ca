"""How a site says no, or that something broke, without saying anything of its own."""

from __future__ import annotations

import errno
import logging

from federation_configs.records import MalformedRecord
from federation_configs.wire import SiteError


class Refusal(Exception):
    """The site does not do what was asked; only the code leaves."""

    def __init__(self, code: SiteError) -> None:
        super().__init__(code.sentence)
        self.code = code


def code_of(error: BaseException, log: logging.Logger) -> SiteError:
    """The code that leaves the site for an exception; its details go to the site's own log only."""
    if isinstance(error, Refusal):
        log.warning("request refused: %s", error.code.sentence)
        return error.code
    if isinstance(error, MalformedRecord):
        log.warning("request refused: %s", error)
        return SiteError.BAD_REQUEST
    log.error("request failed", exc_info=error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return SiteError.OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SiteError.DISK_FULL
    return SiteError.INTERNAL

"""What a name of a federation, run configuration or site may be: fit for a file, a log line and a certificate."""

from __future__ import annotations

NAME = r"^[a-z0-9][a-z0-9-]{0,47}$"

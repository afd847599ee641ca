"""The hours in which a hospital's machine may work for the federation."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

from pydantic import Field, field_validator

from aiseeme_models.options import Options

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")
_DAY_MINUTES = 24 * 60


class ScheduleOptions(Options):
    """The ``[schedule]`` table: when requests are worked on. A round that has begun is finished.

    Times are those of the machine's own clock and time zone.
    """

    hours: str | None = Field(
        default=None,
        description='from and to, as "20:00-07:00" (over midnight) or "00:00-24:00"; default: at any time',
    )
    days: tuple[str, ...] = Field(
        default=DAYS, min_length=1, description="weekdays (mon to sun) on which the hours begin; default: every day"
    )

    @field_validator("hours")
    @classmethod
    def _hours_exist(cls, hours: str | None) -> str | None:
        if hours is not None:
            if not _HOURS.fullmatch(hours):
                raise ValueError('write the hours as "20:00-07:00", with two digits each')
            if hours[:5] == hours[6:]:
                raise ValueError("the hours begin and end at the same time: leave them out, or write 00:00-24:00")
        return hours

    @field_validator("days")
    @classmethod
    def _days_exist(cls, days: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [day for day in days if day not in DAYS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no weekday: there are {', '.join(DAYS)}")
        return days

    def is_open(self, now: datetime) -> bool:
        """Whether a request that comes at ``now`` (local time) is worked on."""
        begin, end = self._minutes
        minute = now.hour * 60 + now.minute
        if begin < end:
            return self._begins_on(now) and begin <= minute < end
        return (self._begins_on(now) and minute >= begin) or (self._begins_on(now - timedelta(days=1)) and minute < end)

    def next_opening(self, now: datetime) -> datetime:
        """When work is allowed next; ``now`` where it is allowed already."""
        if self.is_open(now):
            return now
        begin = self._minutes[0]
        for later in range(8):
            day = now.date() + timedelta(days=later)
            opening = datetime.combine(day, time(begin // 60, begin % 60), tzinfo=now.tzinfo)
            if opening > now and self._begins_on(opening):
                return opening
        raise AssertionError("a week has every weekday")

    @property
    def _minutes(self) -> tuple[int, int]:
        """First minute of the day, and the minute at which it ends; an end that is not later is one of the next day."""
        if self.hours is None:
            return 0, _DAY_MINUTES
        begin, end = ((int(part[:2]) * 60 + int(part[3:])) for part in self.hours.split("-"))
        return begin, end

    def _begins_on(self, day: datetime) -> bool:
        return DAYS[day.weekday()] in self.days

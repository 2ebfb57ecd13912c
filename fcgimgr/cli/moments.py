"""A moment as people give it: so long ago (`5m`, `1h30m`), or a date and time (ISO 8601, local if it says no zone)."""

import re
import time
from datetime import datetime
from typing import Final

import click

from .options import FloatType

_AGO: Final = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?")
_SECONDS: Final = (86400, 3600, 60, 1)


class Moment(FloatType):
    """Seconds since 1970."""

    name = "moment"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text, now = str(value), time.time()
        if text and (ago := _AGO.fullmatch(text)):
            return now - sum(int(count or 0) * seconds for count, seconds in zip(ago.groups(), _SECONDS, strict=True))
        try:
            moment = datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            self.fail(f"{text!r} is no moment: give 90s, 5m, 1h30m, 2d or 2026-11-28T13:40:00", param, ctx)
        if moment > now:
            self.fail(f"{text!r} has not come yet", param, ctx)
        return moment

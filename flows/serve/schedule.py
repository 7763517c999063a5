"""When a campaign's schedule runs: cron lines, by the clock of a time zone."""

import asyncio
import warnings
from contextlib import suppress
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import tzlocal
from prefect.server.schemas.schedules import CronSchedule  # so that we reckon as the server does

from flows.config import ConfigError


def machine_timezone() -> str:
    """The IANA name of this machine's time zone.

    Raises:
        ConfigError: when the machine has no time zone set.
    """
    name = None
    with warnings.catch_warnings(), suppress(ValueError, OSError, KeyError):
        warnings.simplefilter("ignore")
        name = str(tzlocal.get_localzone())
    if name not in available_timezones() - {"localtime"}:
        raise ConfigError(
            "this machine does not tell the name of its time zone: set timezone in the campaign file, for example "
            'timezone = "Europe/Berlin"'
        )
    return name


def next_time(schedule: str | None, zone: ZoneInfo, after: datetime) -> datetime:
    """The first time of a cron line after a moment, in its zone.

    Raises:
        ConfigError: there is none.
    """
    reckoned = CronSchedule(cron=schedule or "", timezone=zone.key).get_dates(1, start=after + timedelta(seconds=1))
    try:
        (found,) = asyncio.run(reckoned)
    except ValueError as exc:
        raise ConfigError(f"the time of schedule = {schedule!r} never comes") from exc
    return datetime.fromtimestamp(found.timestamp(), zone)

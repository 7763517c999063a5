"""What a schedule and a time zone may be in a campaign file."""

import difflib
from typing import Annotated
from zoneinfo import available_timezones

from pydantic import AfterValidator, ValidationInfo

from pipeline.settings import is_held


def _check_cron(value: str | None, info: ValidationInfo) -> str | None:
    if value is None or is_held(info, "schedule", value):
        return None
    from prefect.client.schemas.schedules import CronSchedule

    told = "a schedule is a cron line of five fields, for example '*/15 * * * *'"
    if len(value.split()) > 5:  # of seconds and years, which Prefect would take
        raise ValueError(told)
    try:
        CronSchedule(cron=value)
    except ValueError as exc:
        raise ValueError(told) from exc
    return value


def _check_timezone(value: str | None, info: ValidationInfo) -> str | None:
    if value is None or is_held(info, "timezone", value):
        return None
    known = available_timezones() - {"Factory", "localtime"}  # which name no place
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"not the name of a time zone, for example 'Europe/Berlin', 'America/New_York', 'UTC'{hint}")
    return value


Cron = Annotated[str | None, AfterValidator(_check_cron)]
TimeZone = Annotated[str | None, AfterValidator(_check_timezone)]

"""What people are told of."""

from datetime import timedelta
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from pipeline.settings import Duration, Settings

Kind = Literal[
    "failed",
    "awaiting",
    "new_champion",
    "target_reached",
    "budget_spent",
    "finished",
    "audit_outgrown",
    "schedule_silent",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
SECRET = "login_in_address"  # noqa: S105 (the type of an error whose value is not printed)


def _check_command(value: object) -> object:
    is_list = isinstance(value, list | tuple) and value and all(isinstance(word, str) and word for word in value)
    if value is not None and not is_list:
        raise PydanticCustomError(
            SECRET, 'must be a list, a program and its arguments, for example ["./tell.sh", "-v"]'
        )
    return value


Command = Annotated[tuple[str, ...] | None, BeforeValidator(_check_command)]


class NotifySettings(Settings):
    """Whom to tell what happened. The address of a webhook is in the environment: LABELCYCLE_WEBHOOK."""

    command: Command = Field(
        None, description="a program and its arguments, which gets each event as JSON on standard input"
    )
    on: tuple[Kind, ...] = Field(KINDS, description="events that are told")
    awaiting_after: Duration = Field(
        timedelta(days=3), description="time that a batch waits for labels before that is told, and each time again"
    )
    again_after: Duration = Field(
        timedelta(days=1), description="time after which a failure that lasts is told once more"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_address(cls, values: object) -> object:
        if isinstance(values, dict) and "webhook" in values:
            raise PydanticCustomError(
                SECRET, "the address of a webhook is a secret: take webhook out, and export LABELCYCLE_WEBHOOK"
            )
        return values

"""Task types: what a network decides about an image, one module each."""

from pipeline.tasks import classification
from pipeline.tasks.task_type import TaskType

TASKS: dict[str, TaskType] = {"classification": classification}
"""By the name that the campaign file gives."""

"""Task types: one module each."""

from pipeline.tasks import classification
from pipeline.tasks.task_type import TaskType

TASK_TYPE: TaskType = classification
"""What the networks of a campaign decide: the only one there is today."""

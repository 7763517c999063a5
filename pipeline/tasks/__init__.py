"""Task types: what a network decides about an image, one module each."""

from pipeline.tasks import classification, detection, multi_label, segmentation
from pipeline.tasks.task_type import TaskType

TASKS: dict[str, TaskType] = {
    "classification": classification,
    "multi_label": multi_label,
    "segmentation": segmentation,
    "detection": detection,
}
"""By the name that the campaign file gives."""

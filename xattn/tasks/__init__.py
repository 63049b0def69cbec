"""Tasks that networks are trained for and scored on: each is a file of this folder."""

from xattn.registry import import_modules
from xattn.tasks.base import Data, Scored, Task, TaskMetadata, default_task, tasks
from xattn.tasks.scoring import score

import_modules(__name__, __path__)  # modules of this folder register themselves and need not be listed here

__all__ = ["Data", "Scored", "Task", "TaskMetadata", "default_task", "score", "tasks"]

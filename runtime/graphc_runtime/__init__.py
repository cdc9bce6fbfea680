"""What a compiled module needs to run and to train: NumPy and cffi only.

matplotlib, safetensors and tqdm (``pip install graphc[train]``) are loaded by the functions that use them.
"""

from graphc_runtime import data, schedules
from graphc_runtime.checkpoint import load_state, save_state
from graphc_runtime.curves import plot_history
from graphc_runtime.errors import GraphcError
from graphc_runtime.loader import load_extension
from graphc_runtime.module import Module, StepResult
from graphc_runtime.progress import EpochRecord, History
from graphc_runtime.trainer import TrainableModule, Trainer, evaluate

__all__ = [
    "EpochRecord",
    "GraphcError",
    "History",
    "Module",
    "StepResult",
    "TrainableModule",
    "Trainer",
    "data",
    "evaluate",
    "load_extension",
    "load_state",
    "plot_history",
    "save_state",
    "schedules",
]

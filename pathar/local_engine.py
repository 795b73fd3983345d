"""An engine in this process, by the settings of a worker. What it needs is imported when it loads.

Knows nothing of what is drawn with it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pathar.errors import UsageError

if TYPE_CHECKING:
    from model.engine import Engine
    from model.request import ModelInfo


def local_engine(images: int) -> tuple[Engine, ModelInfo]:
    """An engine for that many images, and the model that it draws with. UsageError on a setting."""
    from model.engine import load_engine
    from model.memory import SlotsError
    from runtime.settings import SettingsError
    from worker.images import numerics
    from worker.settings import read_settings

    try:
        settings = read_settings(os.environ)
        engine = load_engine(
            settings.checkpoint,
            device=settings.device,
            slots=max(1, min(images, settings.slots)),
            threads=settings.threads,
        )
    except SlotsError as error:
        refusal = SettingsError("PATHAR_SLOTS", str(settings.slots), error.expected)
        raise UsageError(str(refusal)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    return engine, engine.info(numerics(engine))

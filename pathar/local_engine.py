"""An engine in this process, by the settings of a worker. What it needs is imported when it loads.

Knows nothing of what is drawn with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pathar import server
from pathar.errors import UsageError

if TYPE_CHECKING:
    from model.engine import Engine
    from model.request import ModelInfo


def local_engine(
    env: Mapping[str, str], command: str, images: int | None = None
) -> tuple[Engine, ModelInfo]:
    """An engine with slots for that many images, as far as its number allows, and the model that
    it draws with. UsageError on a setting, and where `command` finds no server here.
    """
    server.need(command, or_url=True)
    from model.engine import default_slots, load_engine
    from model.memory import SlotsError
    from runtime.settings import SettingsError
    from worker.images import numerics
    from worker.settings import read_settings

    try:
        settings = read_settings(env)
        slots = settings.slots or default_slots(settings.device, settings.threads)
        engine = load_engine(
            settings.checkpoint,
            device=settings.device,
            slots=slots if images is None else max(1, min(images, slots)),
            threads=settings.threads,
        )
    except SlotsError as error:
        refusal = SettingsError("PATHAR_SLOTS", str(settings.slots), error.expected)
        raise UsageError(str(refusal)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    return engine, engine.info(numerics(engine))

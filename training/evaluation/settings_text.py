"""Sampling settings in words: `guidance 1:2, temperature 1, top-k 100, top-p 1`."""

from __future__ import annotations

from model.config import ModelConfig
from model.request import ByStream, SamplingSettings

WORDS = {
    "cfg_scale": "guidance",
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
}


def described(settings: SamplingSettings, usual: SamplingSettings | None = None) -> str:
    """All settings, or those that differ from `usual`; 1:2 is 1 for structure, 2 for appearance."""
    told = vars(settings)
    names = [name for name in WORDS if usual is None or told[name] != getattr(usual, name)]
    return ", ".join(f"{WORDS[name]} {typed(told[name])}" for name in names)


def typed(value: float | ByStream) -> str:
    """A setting as users type it."""
    if isinstance(value, ByStream):
        return f"{value.structure:g}:{value.appearance:g}"
    return f"{value:g}"


def defaults_described(config: ModelConfig) -> str:
    """What a model is drawn with, and of each label that has its own what differs from it."""
    usual = config.defaults
    of_labels = {label.name: config.settings(label.name) for label in config.labels}
    own = {name: described(settings, usual) for name, settings in of_labels.items()}
    text = "; ".join([described(usual), *(f"{name}: {told}" for name, told in own.items() if told)])
    values = [value for each in (usual, *of_labels.values()) for value in vars(each).values()]
    apart = any(isinstance(value, ByStream) for value in values)
    return f"{text} (1:2 is 1 for structure, 2 for appearance)" if apart else text

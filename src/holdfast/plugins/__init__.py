"""What authors subclass: a plugin, and a plugin with a state that outlives its runs."""

from __future__ import annotations

from holdfast.plugins.base import PluginBase, PluginConfig, arguments_from, register_base_schemas
from holdfast.plugins.signals import Cancelled, GiveUp, Released, RetryLater
from holdfast.plugins.source import Source, read_metadata, source_of
from holdfast.plugins.stateful import Runner, SnapshotConfig, StatefulPlugin
from holdfast.plugins.variables import PodVariables

__all__ = [
    "Cancelled",
    "GiveUp",
    "PluginBase",
    "PluginConfig",
    "PodVariables",
    "Released",
    "RetryLater",
    "Runner",
    "SnapshotConfig",
    "Source",
    "StatefulPlugin",
    "arguments_from",
    "read_metadata",
    "register_base_schemas",
    "source_of",
]

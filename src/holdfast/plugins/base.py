"""PluginBase: how a plugin is constructed and configured, and what it must implement."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pydantic
from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter

from holdfast.errors import InvalidError
from holdfast.items import BUILT_IN, Item, PluginRun
from holdfast.pod import Pod


class PluginConfig(BaseModel):
    """The configuration of a plugin as a form: subclass it as ``Config`` inside the plugin's class."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # built for those who configure


class PluginBase:
    """What every plugin is: a class with a `run` method.

    Its constructor does no I/O. A configuration becomes keyword arguments of the constructor; if the class has a
    ``Config``, those of its fields that the constructor does not take itself are validated into ``self.config``.

    Args:
        pluginRun: The run that is to be carried out; without one a RuntimeWarning says that nothing is recorded.
        client: What reaches the Pod; may be None, but running refuses then.
        **kwargs: The fields of ``Config``. Anything else is an error: a misspelt setting is never ignored.

    Raises:
        InvalidError: A keyword is unknown, or a value is not what ``Config`` says.
    """

    schema_classes: ClassVar[Sequence[type[Item]]] = ()
    """The item types that this plugin adds to the Pod."""

    Config: ClassVar[type[PluginConfig] | None] = None
    """What a configuration must be like, if the constructor does not say it."""

    config: Any
    """The configuration, as ``Config`` validated it; its type is the subclass's own, so that checkers leave it open."""

    def __init__(self, pluginRun: PluginRun | None = None, client: Pod | None = None, **kwargs: Any) -> None:  # noqa: N803
        if pluginRun is None:
            self._warn_without_run()
        self.pluginRun = pluginRun
        self._client = client
        self._configure(kwargs)

    def _warn_without_run(self) -> None:
        message = f"{type(self).__name__} was made without a run: what it does is not recorded, and cannot be resumed"
        warnings.warn(message, RuntimeWarning, stacklevel=4)

    def _configure(self, given: Mapping[str, Any]) -> None:
        name = type(self).__name__
        if self.Config is None:
            if given:
                known = ", ".join(_parameters(type(self))) or "none"
                message = f"{name} has no setting {', '.join(map(repr, given))}; it has {known}"
                raise InvalidError(message, plugin=name, settings=list(given))
            return
        try:
            self.config = self.Config.model_validate(dict(given))
        except pydantic.ValidationError as exc:
            raise _wrong_setting(name, exc) from exc

    @property
    def client(self) -> Pod:
        """What reaches the Pod.

        Raises:
            InvalidError: The plugin was made without one.
        """
        if self._client is None:
            raise InvalidError(f"{type(self).__name__} has no client: give it one to reach a Pod")
        return self._client

    @client.setter
    def client(self, client: Pod | None) -> None:
        self._client = client

    def add_to_schema(self) -> None:
        """Declare the item types of `schema_classes`; override it to declare others."""
        if self.schema_classes:
            self.client.add_to_schema(*self.schema_classes)

    def run(self) -> Any:
        """Do the work; may be ``async def``. Every subclass has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no run()")


def arguments_from(cls: type[PluginBase], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` as keyword arguments for ``cls``, checked against the annotations of its constructor.

    Text in a configuration becomes what the annotation asks for where pydantic knows how: a path, a date, a number.

    Raises:
        InvalidError: A setting is unknown, missing, or not what the annotation says; the message names it.
    """
    parameters = _parameters(cls)
    fields = {} if cls.Config is None else cls.Config.model_fields
    unknown = [name for name in config if name not in parameters and name not in fields]
    if unknown:
        known = ", ".join([*parameters, *fields]) or "none"
        message = f"{cls.__name__} has no setting {', '.join(map(repr, unknown))}; it has {known}"
        raise InvalidError(message, plugin=cls.__name__, settings=unknown)
    arguments = dict(config)
    for name, parameter in parameters.items():
        if name in config:
            arguments[name] = _fitted(cls, name, parameter, config[name])
        elif parameter.default is inspect.Parameter.empty:
            raise InvalidError(f"{cls.__name__} needs a setting {name!r}", plugin=cls.__name__, setting=name)
    if cls.Config is not None:
        try:
            cls.Config.model_validate({name: value for name, value in config.items() if name not in parameters})
        except pydantic.ValidationError as exc:
            raise _wrong_setting(cls.__name__, exc) from exc
    return arguments


_OURS = ("self", "pluginRun", "client", "runId", "pluginState")


def _parameters(cls: type[PluginBase]) -> dict[str, inspect.Parameter]:
    """Return what the constructor of ``cls`` takes by name, but for what the runner gives."""
    try:
        found = inspect.signature(cls.__init__, eval_str=True).parameters
    except Exception:  # noqa: BLE001 -- an annotation is the plugin's code, and may name what only a checker imports
        found = inspect.signature(cls.__init__).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: each for name, each in found.items() if name not in _OURS and each.kind in named}


def _fitted(cls: type[PluginBase], name: str, parameter: inspect.Parameter, value: Any) -> Any:
    if parameter.annotation is inspect.Parameter.empty or isinstance(parameter.annotation, str):
        return value
    try:
        adapter = TypeAdapter(parameter.annotation)
    except (PydanticUserError, NameError):  # a type that pydantic cannot know: the plugin looks itself
        return value
    try:
        return adapter.validate_python(value)
    except pydantic.ValidationError as exc:
        raise _wrong_setting(cls.__name__, exc, name) from exc


def _wrong_setting(plugin: str, exc: pydantic.ValidationError, name: str | None = None) -> InvalidError:
    first = exc.errors(include_url=False)[0]
    setting = ".".join(filter(None, (name, *map(str, first["loc"]))))
    if first["type"] == "missing":
        return InvalidError(f"{plugin} needs a setting {setting!r}", plugin=plugin, setting=setting)
    if first["type"] == "extra_forbidden":
        return InvalidError(f"{plugin} has no setting {setting!r}", plugin=plugin, setting=setting)
    # Not the value: it may be a password, and only its type says why it does not fit.
    message = f"setting {setting!r} of {plugin} cannot be of type {type(first['input']).__name__}: {first['msg']}"
    return InvalidError(message, plugin=plugin, setting=setting)


def register_base_schemas(client: Pod) -> None:
    """Declare the built-in item types; a Pod knows them already, so this is for code that was written when none did."""
    client.add_to_schema(*BUILT_IN)

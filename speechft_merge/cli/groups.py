"""Expands groups of options: dataclasses that commands take as one argument and Typer sees field by field."""

from __future__ import annotations

import inspect
from copy import copy
from dataclasses import fields, is_dataclass
from functools import cache, wraps
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_type_hints

import typer

from speechft_merge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class OptionGroup:
    """Options that belong together and know which of them were passed: base of a dataclass, its fields the options."""

    panel: ClassVar[str]
    """Title in the help."""

    @property
    def given(self) -> list[str]:
        """The options that were passed, as the command line has them."""
        kind: Any = type(self)
        return [_as_typed(option) for option in _options_of(kind) if getattr(self, option.name) != option.default]

    def require_effect(self, effective: bool, otherwise: str, remedy: str) -> None:
        """Refuse options that would change nothing: whoever passes one believes that it does.

        Args:
            effective: whether the options of the group have an effect.
            otherwise: when they have none: "without --cka".
            remedy: what gives them one: "pass --cka".

        Raises:
            UsageError: one of them was passed in vain.
        """
        if self.given and not effective:
            named, verb = " and ".join(self.given), "have" if len(self.given) > 1 else "has"
            raise UsageError(f"{named} {verb} no effect {otherwise}", hint=f"{remedy}, or leave {named} out")


def one_of(choices: Sequence[str], help: str, panel: str | None = None) -> Any:
    """Declare an option that takes one of a few words: the help lists and completion offers them.

    Any other the library refuses, with the nearest of them.
    """
    return typer.Option(
        metavar=f"[{'|'.join(choices)}]", help=help, rich_help_panel=panel, autocompletion=lambda: [*choices]
    )


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with the signature that Typer reads: in place of each group its fields, an option each.

    A group is a parameter whose type is a dataclass with a `panel`, its title in the help. The fields are annotated as
    parameters of a command are; no two of a command have the same name. The command gets the filled dataclass.
    """
    types = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in types.items() if is_dataclass(kind)}

    @wraps(command)
    def expanded(**given: Any) -> None:
        filled = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**given, **filled)

    parameters = [
        option
        for name, parameter in inspect.signature(command).parameters.items()
        for option in (_options_of(groups[name]) if name in groups else [parameter.replace(annotation=types[name])])
    ]
    keywords = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in parameters]
    expanded.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    expanded.__annotations__ = {option.name: option.annotation for option in keywords}
    return expanded


@cache  # annotations are text, and read for each command: a few milliseconds of every start
def _options_of(group: Any) -> list[inspect.Parameter]:
    """Return the fields as parameters, each under its own title in the help or the group's."""
    types, options = get_type_hints(group, include_extras=True), []
    for field in fields(group):
        kind, option = get_args(types[field.name])
        option = copy(option)
        option.rich_help_panel = option.rich_help_panel or group.panel
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(
            inspect.Parameter(field.name, keyword, default=field.default, annotation=Annotated[kind, option])
        )
    return options


def _as_typed(option: inspect.Parameter) -> str:
    """Return an option as the command line has it."""
    declared = get_args(option.annotation)[1].param_decls or ()
    return next((word for word in declared if word.startswith("--")), f"--{option.name.replace('_', '-')}")

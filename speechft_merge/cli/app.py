"""The commands under one name, merge being the one that needs no word: `speechft-merge BASE FINETUNED`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from speechft_merge.cli.compare import compare
from speechft_merge.cli.inspect import inspect
from speechft_merge.cli.merge import merge
from speechft_merge.cli.push import push
from speechft_merge.version import __version__


class MergeByDefault(TyperGroup):
    """A group whose first word may be a model instead of a command; then `merge` is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `merge` before arguments that begin with neither a command nor one of the group's own options."""
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in own and args[0] not in self.commands:
            self._guard_against_typo(ctx, args[0])
            args = ["merge", *args]
        return super().parse_args(ctx, args)

    def _guard_against_typo(self, ctx: Any, word: str) -> None:
        """`inspct x` must not merge a model called inspct."""
        close = difflib.get_close_matches(word, self.commands, cutoff=0.8)
        if close and "/" not in word and not Path(word).exists():
            ctx.fail(
                f"No such command {word!r}. Did you mean {close[0]!r}? (For a model of that name: merge {word} ...)"
            )

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete the options of `merge` too, since its name may be left out."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            command = self.commands["merge"]
            with command.make_context("merge", [], parent=ctx, resilient_parsing=True) as inner:
                found += command.shell_complete(inner, incomplete)
        return found


app = typer.Typer(
    cls=MergeByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help and errors, in job logs too; and no import of rich
    pretty_exceptions_enable=False,
    subcommand_metavar="BASE FINETUNED... | COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="speechft-merge BASE FINETUNED is short for speechft-merge merge BASE FINETUNED; "
    "'speechft-merge merge --help' has the options.",
)
app.command()(merge)
app.command()(inspect)
app.command()(compare)
app.command()(push)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"speechft-merge {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Interpolate a pre-trained and a fine-tuned speech encoder, tensor by tensor (Speech-FT)."""

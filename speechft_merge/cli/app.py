"""Joins the commands into one program; `merge` is the default: `speechft-merge BASE FINETUNED`."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from speechft_merge.cli.compare import compare
from speechft_merge.cli.groups import GroupedHelp
from speechft_merge.cli.inspect import inspect
from speechft_merge.cli.merge import merge
from speechft_merge.cli.push import push
from speechft_merge.cli.sweep import sweep
from speechft_merge.cli.verify import verify
from speechft_merge.errors import UsageError
from speechft_merge.version import __version__


class MergeByDefault(TyperGroup):
    """A group whose first word may be a model instead of a command; then `merge` is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `merge` before arguments that begin with neither a command nor one of the group's own options."""
        if not args and not ctx.resilient_parsing:
            print(ctx.get_help(), file=sys.stderr)
            ctx.exit(2)
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in own and args[0] not in self.commands:
            self._guard_against_typo(args[0])
            args = ["merge", *args]
        return super().parse_args(ctx, args)

    def _guard_against_typo(self, word: str) -> None:
        """Refuse `inspct x`, which must not merge a model called inspct."""
        close = difflib.get_close_matches(word, self.commands, cutoff=0.8)
        if close and "/" not in word and not Path(word).exists():
            raise UsageError(
                f"no such command: {word!r}",
                hint=f"did you mean {close[0]!r}? For a model of that name: speechft-merge merge {word} ...",
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
    rich_markup_mode=None,  # plain help and errors, in job logs too; and no import of rich
    pretty_exceptions_enable=False,
    subcommand_metavar="BASE FINETUNED... | COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="speechft-merge BASE FINETUNED is short for speechft-merge merge BASE FINETUNED; "
    "'speechft-merge merge --help' has the options.",
)
# short help: Typer would cut the first line after 45 characters
app.command(cls=GroupedHelp, short_help="Write base + alpha * (finetuned - base) as a model (the default).")(merge)
app.command(cls=GroupedHelp, short_help="Show what is in a checkpoint, or how two would be matched.")(inspect)
app.command(cls=GroupedHelp, short_help="Compare the features of base, fine-tune and merge (CKA).")(compare)
app.command(cls=GroupedHelp, short_help="Find out which alpha, by scores and a rule.")(sweep)
app.command(cls=GroupedHelp, short_help="Make a merge again and compare it with its output.")(verify)
app.command(cls=GroupedHelp)(push)


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

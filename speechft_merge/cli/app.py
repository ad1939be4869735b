"""Joins the commands into one program; `merge` is the default: `speechft-merge BASE FINETUNED`."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from speechft_merge.choices import choose
from speechft_merge.cli.compare import compare
from speechft_merge.cli.help import ENVIRONMENT, WIDEST, ExampleHelp, GroupedHelp, write_rows
from speechft_merge.cli.inspect import inspect
from speechft_merge.cli.merge import merge
from speechft_merge.cli.push import push
from speechft_merge.cli.sweep import sweep
from speechft_merge.cli.verify import verify
from speechft_merge.errors import NotFoundError, UsageError, quote
from speechft_merge.version import __version__

SYNONYMS = {
    "diff": "compare", "cka": "compare", "similarity": "compare", "info": "inspect", "show": "inspect",
    "match": "inspect", "upload": "push", "publish": "push", "check": "verify", "validate": "verify", "grid": "sweep",
    "search": "sweep", "evaluate": "sweep", "merge-best": "sweep", "average": "merge", "interpolate": "merge",
}  # fmt: skip
"""What other programs call the commands."""

_WORD = "speechft_merge.word"
"""Key in a context: the first word, taken for a model, where it is no path that exists."""


def _is_plain(word: str) -> bool:
    """Return whether a word is neither an option, nor a path that exists, nor written like a path or a reference."""
    from speechft_merge.sources.reference import local_path  # not for --help

    return not word.startswith("-") and not set("/@:.~") & set(word) and local_path(word) is None


class MergeByDefault(ExampleHelp, TyperGroup):
    """A group whose first word may be a model instead of a command; then `merge` is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `merge` before arguments that begin with neither a command nor one of the group's own options."""
        if not args and not ctx.resilient_parsing:
            print(ctx.get_help(), file=sys.stderr)
            ctx.exit(2)
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in own and args[0] not in self.commands:
            if not ctx.resilient_parsing and _is_plain(args[0]):
                self._guard_against_command(args)
                ctx.meta[_WORD] = args[0]
            args = ["merge", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; if a first word is not found as a model, tell of the commands as well."""
        try:
            return super().invoke(ctx)
        except NotFoundError as error:
            if (word := ctx.meta.get(_WORD)) and error.message.startswith(f"{word}: ") and not error.found:
                error.add_note(f"the commands are {', '.join(self.commands)}")
            raise

    def _guard_against_command(self, words: list[str]) -> None:
        """Refuse what is meant as a command: `inspct x` must not merge a model called inspct, and none merges alone."""
        word, alone = words[0], all(other.startswith("-") for other in words[1:])
        near = self._near(word)
        if near or alone:
            meant = f"did you mean {near!r}?" if near else f"the commands are {', '.join(self.commands)}."
            hint = f"{meant} For a model of that name: speechft-merge merge {word} ..."
            raise UsageError(f"no such command: {quote(word)}", hint=hint)

    def _near(self, word: str) -> str | None:
        """Return the command that a word may have meant."""
        return SYNONYMS.get(word) or next(iter(get_close_matches(word, self.commands, 1, 0.8)), None)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the environment variables after the examples."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Environment"):
            write_rows(formatter, ENVIRONMENT)

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
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
)
# short help: Typer would cut the first line after 45 characters
app.command(cls=GroupedHelp, short_help="Write base + alpha * (finetuned - base) as a model (the default).")(merge)
app.command(cls=GroupedHelp, short_help="Show what is in a checkpoint, or how two would be matched.")(inspect)
app.command(cls=GroupedHelp, short_help="Compare the features of base, fine-tune and merge (CKA).")(compare)
app.command(cls=GroupedHelp, short_help="Find out which alpha, by scores and a rule.")(sweep)
app.command(cls=GroupedHelp, short_help="Make a merge again and compare it with its output.")(verify)
app.command(cls=GroupedHelp, short_help="Push a merged model to the Hub, in one commit.")(push)


def _offer_commands(ctx: typer.Context) -> list[str]:
    group: Any = ctx.parent
    return [*group.command.commands]


@app.command("help", cls=GroupedHelp, short_help="Show this, or the help of a command.")
def show_help(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="COMMAND", help="One of the others.", autocompletion=_offer_commands)
    ] = None,
) -> None:
    """Show the help of a command, or of the program.

    Examples:
      speechft-merge help
      speechft-merge help sweep
    """
    group: Any = ctx.parent
    if name is None:
        print(group.get_help())
        return
    name = SYNONYMS.get(name, name)
    command = group.command.commands.get(choose("command", name, [*group.command.commands]))
    with command.make_context(name, [], parent=group, resilient_parsing=True) as inner:
        print(inner.get_help())


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
    """Interpolate a pre-trained and a fine-tuned speech encoder, tensor by tensor (Speech-FT).

    speechft-merge BASE FINETUNED is short for speechft-merge merge BASE FINETUNED; its options: speechft-merge help
    merge.

    Examples:
      speechft-merge facebook/hubert-base-ls960 ./my-asr -o merged
      speechft-merge facebook/hubert-base-ls960 ./my-asr --alpha 0.5 --cka
      speechft-merge inspect facebook/hubert-base-ls960 ./my-asr
      speechft-merge help sweep
    """

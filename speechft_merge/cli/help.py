"""Lays out help in plain text: options by group, then the examples of a docstring."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDEST = 120
"""Most columns of the help: longer lines are hard to read."""

_EXAMPLES = "Examples"

ENVIRONMENT = (
    ("HF_TOKEN", "Token for private models and for pushes; else that of 'hf auth login'."),
    ("HF_HOME, HF_HUB_CACHE", "Where the Hub's client keeps the token, and what --download fetches."),
    ("HF_HUB_OFFLINE", "1: ask nothing of the Hub; what --download fetched before is used."),
    ("HF_ENDPOINT", "Another server than https://huggingface.co: a mirror."),
    ("HF_HUB_DISABLE_PROGRESS_BARS", "1: show no progress."),
    ("SPEECHFT_MERGE_LONGEST_WAIT", "Most seconds that the Hub may ask to wait before a request is tried again."),
    ("SPEECHFT_MERGE_DEBUG", "1: show the traceback of an error."),
    ("SLURM_CPUS_PER_TASK", "What --workers is by default, at most."),
    ("SLURM_TMPDIR, TMPDIR", "Where a sweep writes models for --score, unless --scratch says."),
    ("NO_COLOR, COLUMNS", "Show no colours; fit lines to so many columns."),
)
"""Environment variables that are read, and what for."""


class ExampleHelp:
    """Shows at the end of the help what the docstring has under `Examples:`, line by line. Mixed into commands."""

    def __init__(self, *args: Any, help: str | None = None, **settings: Any) -> None:
        text, _, examples = (help or "").partition(f"\n\n{_EXAMPLES}:\n")
        super().__init__(*args, help=text, **settings)  # type: ignore[call-arg]  # the next class of the command's
        self.examples = textwrap.dedent(examples).splitlines()

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section(_EXAMPLES):
                formatter.write("".join(f"  {line}\n" for line in self.examples))


def write_rows(formatter: Any, rows: Sequence[tuple[str, str]]) -> None:
    """Write two columns; Click's own would break `--dry-run` at its hyphen."""
    indent = min(max(len(name) for name, _ in rows) + 4, 32, max(16, formatter.width - 46))
    for name, text in rows:
        lines = textwrap.wrap(text, formatter.width - indent, break_on_hyphens=False, break_long_words=False)
        if len(name) + 4 > indent:
            formatter.write(f"  {name}\n")
            name = ""
        for line in lines or [""]:
            formatter.write(f"  {name:{indent - 2}}{line}".rstrip() + "\n")
            name = ""


class GroupedHelp(ExampleHelp, TyperCommand):
    """A command whose help lists its options by group."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line, without the braces that Typer puts around what is required."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for the arguments and for each group, in the order of the signature; --help comes last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            usual = "Arguments" if parameter.param_type_name == "argument" else "Messages"
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                write_rows(formatter, records)

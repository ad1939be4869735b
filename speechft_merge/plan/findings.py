"""Defines what is found about a merge beforehand: notes, warnings, and reasons to refuse it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from speechft_merge.errors import MismatchError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

ALLOW_PARTIAL = "--allow-partial"
ALLOW_UNRELATED = "--allow-unrelated"


class Level(StrEnum):
    """How much a finding weighs."""

    NOTE = "note"
    """Worth a line; nothing is wrong."""
    WARNING = "warning"
    REFUSAL = "refusal"
    """Ends the merge with exit 65 before anything is written, unless it is allowed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line about a merge; it goes to stderr in every mode, and into the manifest and the model card."""

    level: Level
    text: str
    """One sentence without a full stop."""
    hint: str = ""
    """Of a refusal: what to do."""
    allowed_by: str = ""
    """Of a refusal: the option that merges all the same; empty if there is none."""


def require_sound(findings: Iterable[Finding], allowed: Collection[str]) -> tuple[Finding, ...]:
    """Refuse a merge by its refusals; return what stands, those that are allowed as warnings.

    Args:
        findings: all that is known, the weightiest refusals first.
        allowed: options that were passed, such as `ALLOW_PARTIAL`.

    Raises:
        MismatchError: there is a refusal that no option allows.
    """
    standing = []
    for finding in findings:
        if finding.level is Level.REFUSAL:
            if finding.allowed_by not in allowed:
                allow = f"pass {finding.allowed_by} to merge anyway" if finding.allowed_by else ""
                raise MismatchError(finding.text, hint="; ".join(filter(None, (finding.hint, allow))) or None)
            finding = replace(
                finding, level=Level.WARNING, text=f"{finding.text}; merged anyway ({finding.allowed_by})", hint=""
            )
        standing.append(finding)
    return tuple(standing)


def texts(findings: Iterable[Finding], level: Level | None = None) -> tuple[str, ...]:
    """Return the sentences of the findings, or of those of one level."""
    return tuple(finding.text for finding in findings if level in (None, finding.level))

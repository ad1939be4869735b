"""Whether the toolkits are here: the one line that stands for their tests where they are not."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

TOOLKITS = ("loralib", "peft", "s3prl", "speechbrain", "torchaudio", "whisper")


def missing() -> list[str]:
    return [name for name in TOOLKITS if find_spec(name) is None]


def test_the_toolkits_are_installed() -> None:
    if missing():
        pytest.skip(f"their loaders are tested where .ci/run has installed them; missing: {', '.join(missing())}")

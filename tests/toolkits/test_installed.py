"""Whether the toolkits are here: the one line that stands for their tests where they are not."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

TOGETHER = ("loralib", "peft", "s3prl", "speechbrain", "torchaudio", "whisper")
"""Installed in one environment, requirements.txt."""

APART = {"espnet": "espnet2", "fairseq": "fairseq", "fairseq2": "fairseq2", "funasr": "funasr", "nemo": "nemo"}
"""Each in an environment of its own, NAME.txt, and the module that its tests import."""


def missing() -> list[str]:
    return [name for name in TOGETHER if find_spec(name) is None]


def missing_apart() -> list[str]:
    return [name for name, module in APART.items() if find_spec(module) is None]


def test_the_toolkits_are_installed() -> None:
    if found := missing() + missing_apart():
        pytest.skip(f"their loaders are tested where .ci has installed them; missing: {', '.join(found)}")

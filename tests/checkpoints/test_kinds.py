"""What is no checkpoint to read: the command in the hint, run as it is, makes one that is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechft_merge.checkpoints import open_checkpoint
from speechft_merge.errors import SpeechFTMergeError


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


def save_distributed(path: str) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(small().state_dict(), checkpoint_id=path, no_dist=True)


def save_exported(path: str) -> None:
    torch.export.save(torch.export.export(small(), (torch.ones(1, 3),)), path)


WRITERS: dict[str, tuple[str, Any]] = {
    "TorchScript": ("scripted.pt", lambda path: torch.jit.save(torch.jit.script(small()), path)),
    "a pickled module": ("whole.pt", lambda path: torch.save(small(), path)),
    "one in a dictionary": ("it's here.pt", lambda path: torch.save({"best": {"model": small()}, "epoch": 3}, path)),
    "arrays of numpy": (
        "arrays.npz",
        lambda path: np.savez(path, **{n: t.numpy() for n, t in small().state_dict().items()}),
    ),
    "a distributed checkpoint": ("sharded", save_distributed),
    "an exported program": ("exported.pt2", save_exported),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("ignore")
def test_the_command_of_the_hint_makes_it_readable(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, write = WRITERS[kind]
    monkeypatch.chdir(tmp_path)
    write(name)
    with pytest.raises(SpeechFTMergeError) as raised:
        open_checkpoint(name)
    command = re.search(r"python .+(?=, and give )", raised.value.hint or "")
    assert command is not None
    folder = str(Path(sys.executable).parent)
    subprocess.run(command[0], shell=True, check=True, env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"})
    (made,) = {"weights.pt", "weights.safetensors"} & {path.name for path in tmp_path.iterdir()}
    with open_checkpoint(made) as found:
        wanted = small().state_dict()
        assert found.tensors.keys() == wanted.keys()
        for key, span in found.tensors.items():
            assert span.source.read(span.offset, span.nbytes) == wanted[key].numpy().tobytes()


def test_a_key_that_is_no_name_stands_in_no_command(tmp_path: Path) -> None:
    """The hint is for a shell."""
    torch.save({'"; touch x; "': small()}, tmp_path / "hostile.pt")
    with pytest.raises(SpeechFTMergeError) as raised:
        open_checkpoint(str(tmp_path / "hostile.pt"))
    assert "touch" not in (raised.value.hint or "")

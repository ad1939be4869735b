"""S3PRL's own models, merged and loaded by its own upstreams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from float64 import differences, interpolate, moved, rounded
from lab_files import s3prl_base, s3prl_finetune, wavlm
from loaders import merged, toolkit, waves
from s3prl_models import LABS, build_s3prl

if TYPE_CHECKING:
    from pathlib import Path

    from lab_models import Lab

pytestmark = pytest.mark.filterwarnings("ignore")

HEADS = ("final_proj", "label_embs_concat", "quantizer", "project_q")


def upstream(lab: Lab, path: Path) -> Any:
    """What `hub.hubert_local(ckpt=path)` and its like return."""
    hub = toolkit(f"s3prl.upstream.{lab.family}.hubconf")
    return getattr(hub, f"{lab.family}_local")(str(path)).eval()


def features(model: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return list(model(list(waves()))["hidden_states"])


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: f"{lab.family} large" if lab.large else lab.family)
def test_an_upstream_loads_the_merge_of_a_base_with_its_fine_tune(lab: Lab, tmp_path: Path) -> None:
    write = wavlm if lab.family == "wavlm" else s3prl_base
    torch.save(write(lab, build_s3prl(lab).state_dict()), tmp_path / "base.pt")
    tuned = upstream(lab, tmp_path / "base.pt")
    base = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    tuned.load_state_dict(moved(base))
    whole = s3prl_finetune(lab, {}) | {"Upstream": tuned.state_dict()}  # as `downstream/runner.py` saves it
    torch.save(whole, tmp_path / "dev-best.ckpt")

    file = merged(tmp_path / "base.pt", tmp_path / "dev-best.ckpt", tmp_path / "out")
    found = upstream(lab, file)
    kept = {name for name in base if name.startswith(tuple(f"model.{head}" for head in HEADS))}
    wanted = interpolate(base, {name: tensor for name, tensor in tuned.state_dict().items() if name not in kept})
    assert differences(found.state_dict(), wanted) == {}
    tuned.load_state_dict(rounded(wanted, base))
    torch.testing.assert_close(features(found), features(tuned), rtol=1e-4, atol=1e-5)

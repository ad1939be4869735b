"""Models of S3PRL's own classes, which are ports of fairseq's and Microsoft's."""

from __future__ import annotations

from typing import Any

import torch
from lab_files import SYMBOLS, TASK, wavlm
from lab_models import Lab
from loaders import toolkit

SETTINGS = {"hubert": {"label_rate": 50.0}, "wav2vec2": {"quantize_targets": True}, "wavlm": {}}
BOTH = (False, True)
LABS = [
    Lab(family, large=large, conv_bias=large, extra=SETTINGS[family]) for family in SETTINGS for large in (False, True)
]


def build_s3prl(lab: Lab) -> Any:
    """A model of S3PRL's class with random weights."""
    torch.manual_seed(0)
    filled = toolkit("s3prl.upstream.utils").merge_with_parent
    if lab.family == "wavlm":
        classes = toolkit("s3prl.upstream.wavlm.WavLM")
        return classes.WavLM(classes.WavLMConfig(wavlm(lab, {})["cfg"]))
    if lab.family == "wav2vec2":
        classes = toolkit("s3prl.upstream.wav2vec2.wav2vec2_model")
        return classes.Wav2Vec2Model(filled(classes.Wav2Vec2Config, lab.settings))
    classes = toolkit("s3prl.upstream.hubert.hubert_model")
    settings = filled(classes.HubertConfig, lab.settings), filled(classes.HubertPretrainingConfig, TASK)
    return classes.HubertModel(*settings, SYMBOLS)

"""Scores a classifier by its own head: `python -m examples.stage1.score MODEL TABLE` prints a record a recording.

`speechft-merge sweep` runs it on each merge: `--score 'own_head=python -m examples.stage1.score {model} TABLE'`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from examples.stage1.data import LABEL
from speechft_merge.scoring.clips import Recordings, read_table
from speechft_merge.similarity.inputs import InputMaker


def records(folder: Path, table: Path) -> Iterator[dict[str, Any]]:
    """Whether each recording of a table is classified right, as a sweep takes it."""
    model = transformers.AutoModelForAudioClassification.from_pretrained(folder, dtype=torch.float32).eval()
    settings = transformers.AutoFeatureExtractor.from_pretrained(folder).to_dict()
    clips = read_table(table, LABEL)
    for batch, places in Recordings(clips).batches(InputMaker(model.config.to_dict(), settings)):
        with torch.inference_mode():
            best = model(**batch.inputs).logits.argmax(-1)
        for place, number in zip(places, best.tolist(), strict=True):
            clip = clips[place]
            right = model.config.id2label[number] == clip.label
            yield {"id": clip.id, "group": clip.group, "correct": int(right), "total": 1}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("table", type=Path)
    args = parser.parse_args()
    for record in records(args.model, args.table):
        print(json.dumps(record))

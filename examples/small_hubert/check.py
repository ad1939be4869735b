"""Measure the pair and the models between its ends: voices told apart, phones readable, likeness to both ends."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import HubertForSequenceClassification, HubertModel, WhisperFeatureExtractor

from examples.small_hubert.finetune import CROP
from examples.sources.recordings import (
    RATE,
    decode,
    festvox_paths,
    festvox_phones,
    normalise,
    random_crops,
    voice_clips,
)

Probe = list[tuple[torch.Tensor, list[str]]]


def load_utterances(speech: Path) -> Probe:
    """Ninety held-out utterances of festvox-ru, cut at 10 s, each as its wave and the phone of every 20 ms frame."""
    utterances = []
    for path in festvox_paths(speech, held_out=True)[:90]:
        wave = torch.from_numpy(decode(path)[: 10 * RATE].astype(np.float32) / 32768)
        marks = festvox_phones(path)
        centres = (np.arange((len(wave) - 400) // 320 + 1) * 320 + 200) / RATE
        places = np.searchsorted([end for end, _ in marks], centres)
        utterances.append((wave, [marks[place][1] for place in places if place < len(marks)]))
    return utterances


@torch.no_grad()
def frames(encoder: torch.nn.Module, utterances: Probe) -> list[torch.Tensor]:
    """The last layer's states of every labelled frame, per utterance."""
    return [encoder(normalise(wave[None])).last_hidden_state[0, : len(phones)] for wave, phones in utterances]


def log_mel(utterances: Probe) -> list[torch.Tensor]:
    """The simplest features to beat: log-mel spectra, two 10 ms frames side by side."""
    extractor = WhisperFeatureExtractor()
    features = []
    for wave, phones in utterances:
        mel = extractor(wave.numpy(), sampling_rate=RATE, padding="longest", return_tensors="pt").input_features[0].T
        features.append(mel[: len(mel) // 2 * 2].reshape(-1, 160)[: len(phones)])
    return features


def phone_accuracy(features: list[torch.Tensor], utterances: Probe) -> float:
    """Accuracy of a ridge probe from frames to phones: two thirds of the utterances to fit, one third to test."""
    alphabet = sorted({phone for _, phones in utterances for phone in phones})
    labels = [torch.tensor([alphabet.index(phone) for phone in phones]) for _, phones in utterances]
    cut = len(utterances) * 2 // 3
    fit, test = torch.cat(features[:cut]).double(), torch.cat(features[cut:]).double()
    mean, scale = fit.mean(dim=0), fit.std(dim=0) + 1e-6
    fit, test = (torch.nn.functional.pad((x - mean) / scale, (0, 1), value=1.0) for x in (fit, test))
    targets = torch.nn.functional.one_hot(torch.cat(labels[:cut]), len(alphabet)).double()
    gram = fit.T @ fit + 1e-3 * len(fit) * torch.eye(fit.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, fit.T @ targets)
    return float((test @ weights).argmax(dim=1).eq(torch.cat(labels[cut:])).double().mean())


def cka(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """Linear centred kernel alignment of two sets of frames."""
    x, y = (torch.cat(side).double() for side in (left, right))
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


@torch.no_grad()
def voice_accuracy(model: torch.nn.Module, crops: list[torch.Tensor]) -> float:
    """Accuracy of the fine-tune's own classifier on held-out crops."""
    hits = [model(normalise(rows)).logits.argmax(dim=1).eq(label) for label, rows in enumerate(crops)]
    return float(torch.cat(hits).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--finetuned", type=Path, required=True)
    parser.add_argument("--speech", type=Path, required=True, help="folder with the unpacked Debian packages")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    args = parser.parse_args()
    torch.set_num_threads(1)

    base = HubertModel.from_pretrained(args.base, dtype=torch.float32).state_dict()
    model = HubertForSequenceClassification.from_pretrained(args.finetuned, dtype=torch.float32).eval()
    tuned = {name: tensor.clone() for name, tensor in model.hubert.state_dict().items()}
    moved = torch.cat([(tuned[name] - base[name]).flatten() for name in base]).norm()
    whole = torch.cat([tensor.flatten() for tensor in base.values()]).norm()
    print(f"relative drift {moved / whole:.3f}")

    utterances = load_utterances(args.speech)
    generator = np.random.default_rng(2)
    crops = [random_crops(clip, 60, CROP, generator) for clip in voice_clips(args.speech, held_out=True).values()]
    phones = [phone for _, labels in utterances[len(utterances) * 2 // 3 :] for phone in labels]
    commonest = max(phones.count(phone) for phone in set(phones)) / len(phones)
    print(f"voices: chance {1 / len(crops):.3f}; phones: {len(phones)} frames, commonest {commonest:.3f}, ", end="")
    print(f"log-mel {phone_accuracy(log_mel(utterances), utterances):.3f}")

    ends = []
    for state in (base, tuned):
        model.hubert.load_state_dict(state)
        ends.append(frames(model.hubert, utterances))
    print("alpha  voices  phones  CKA to base  CKA to fine-tuned")
    for alpha in args.alpha:
        model.hubert.load_state_dict({name: base[name] + alpha * (tuned[name] - base[name]) for name in base})
        states = frames(model.hubert, utterances)
        figures = voice_accuracy(model, crops), phone_accuracy(states, utterances), *(cka(states, end) for end in ends)
        print("{:5.2f}  {:6.3f}  {:6.3f}  {:11.3f}  {:17.3f}".format(alpha, *figures), flush=True)


if __name__ == "__main__":
    main()

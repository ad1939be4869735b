"""What a sweep costs: its CPU time beside that of the forwards alone, and of merging, loading and scoring by hand.

    python pairs.py FOLDER --only hubert --kind safetensors
    python sweep.py --pair FOLDER/hubert/safetensors [--clips 12] [--seconds 1] [--alphas 0:1:0.05] [--tilts=-0.5,0,0.5]

Three probe tasks, of as many clips of the built-in probe each, cut to so many seconds. By hand a cell is one merge, and
for each score a process that loads it with transformers and runs it on the clips; of that some cells are measured, and
their median counts for all. One thread. For Linux.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from runs import ENVIRONMENT, Run, measure

HERE = Path(__file__).resolve()
TASKS = 3
PROBE = 30.0
"""Seconds of the clips that features are compared on."""
BY_HAND = 5
"""Cells that are made by hand."""
ALONE = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

FORWARDS = """
import sys
from pathlib import Path
import torch
import soundfile
import transformers
torch.set_num_threads(1)
model, folder, passes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
encoder = transformers.AutoModel.from_pretrained(model, dtype=torch.float32).eval()
extractor = transformers.Wav2Vec2FeatureExtractor()
clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(folder.rglob("*.wav"))]  # of tasks and probe
inputs = [extractor(clip, sampling_rate=16000, return_tensors="pt")["input_values"] for clip in clips]
with torch.inference_mode():
    for _ in range(passes):
        for values in inputs:
            states = [state.mean(1) for state in encoder(values, output_hidden_states=True).hidden_states]
"""
"""Loads a model and runs it on all clips below a folder, again and again."""


def cut_tasks(folder: Path, clips: int, seconds: float) -> list[Path]:
    """Write the tasks: two classes of half of the clips each, every clip a group of its own."""
    import soundfile

    from speechft_merge.similarity.probe import BUILT_IN

    found = sorted(BUILT_IN.glob("*.flac"))
    tasks = [folder / f"task{number}" for number in range(TASKS)]
    for number, task in enumerate(tasks):
        for place in range(clips):
            samples, rate = soundfile.read(found[(number * clips + place) % len(found)], dtype="float32")
            target = task / f"class{place % 2}" / f"{place}.wav"
            target.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(target, samples[: int(seconds * rate)], rate)
    return tasks


def write_probe(folder: Path) -> None:
    """Write the clips that features are compared on."""
    import soundfile

    from speechft_merge.similarity.probe import read_probe

    folder.mkdir()
    for number, samples in enumerate(read_probe(None, 16_000, PROBE).clips):
        soundfile.write(folder / f"{number}.wav", samples, 16_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--alphas", default="0:1:0.05")
    parser.add_argument("--tilts", default="-0.5,0,0.5")
    parser.add_argument("--cka", action="store_true", help="also compare features, on 30 s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, log = Path(folder), Path(folder, "log")
        tasks = cut_tasks(work / "tasks", args.clips, args.seconds)
        base, finetuned = str(args.pair / "base"), str(args.pair / "finetuned")
        program = [sys.executable, "-m", "speechft_merge"]
        scores = [word for task in tasks for word in ("--probe-task", f"{task.name}={task}")]
        features = ["--probe-seconds", str(PROBE)] if args.cka else ["--no-cka"]
        grid = ["--alphas", args.alphas, f"--tilts={args.tilts}", *scores, *features]
        swept = measure(
            [*program, "sweep", base, finetuned, "-o", str(work / "out"), "--workers", "1", "-q", *grid], log, ALONE
        )
        if args.cka:
            write_probe(work / "tasks/probe")
        cells = len(json.loads((work / "out/sweep.json").read_text())["cells"])
        forwards = measure([sys.executable, "-c", FORWARDS, base, str(work / "tasks"), str(cells)], log, ALONE)
        hands: list[list[Run]] = []
        for number in range(BY_HAND):
            merged = str(work / f"merged{number}")
            merge = [
                *program,
                "merge",
                base,
                finetuned,
                "--alpha",
                f"{(number + 1) / 10}",
                "-o",
                merged,
                "-q",
                "--no-fsync",
            ]
            runs = [measure([*merge, "--workers", "1"], log, ALONE)]
            runs += [measure([sys.executable, "-c", FORWARDS, merged, str(task), "1"], log, ALONE) for task in tasks]
            hands.append(runs)
        by_hand = statistics.median(sum(run.cpu for run in runs) for runs in hands) * cells
        print(f"{cells} cells, {TASKS} tasks of {args.clips} clips of {args.seconds:g} s")
        print(f"sweep         {swept.cpu:8.1f} s CPU, {swept.wall:8.1f} s, peak {swept.rss / 1e6:.0f} MB")
        print(f"forwards      {forwards.cpu:8.1f} s CPU, {forwards.wall:8.1f} s, peak {forwards.rss / 1e6:.0f} MB")
        print(f"by hand       {by_hand:8.1f} s CPU (median of {BY_HAND} cells, times {cells})")
        print(f"sweep / forwards {swept.cpu / forwards.cpu:.2f}, by hand / sweep {by_hand / swept.cpu:.1f}")


if __name__ == "__main__":
    main()

"""Run the paper's own merge script beside this tool, on good pairs and on difficult input, and print both tables.

    git clone https://github.com/nervjack2/Speech-FT && git -C Speech-FT checkout 6631ab5
    pip install -e '.[test]' && pip install --no-deps -r tests/toolkits/requirements.txt
    python tests/benchmarks/official_script.py Speech-FT

The script needs S3PRL, whose classes read the base. What it writes is a copy of a base that it downloads; here that is
the base of each case. Models are small and random, of S3PRL's own classes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS), str(TESTS / "toolkits")]

import lab_files  # noqa: E402
import lab_models  # noqa: E402
import s3prl_models  # type: ignore[import-not-found]  # noqa: E402

Weights = dict[str, torch.Tensor]

DRIVER = """
import json, sys
import s3prl.upstream.decoar2.decoar2 as decoar2
import s3prl.util.download as download
decoar2.args |= json.loads(sys.argv[2])
download._urls_to_filepaths = lambda *_, **__: "base.pt"
sys.path.insert(0, sys.argv[1])
import merge_model
merge_model.main("merge.yaml")
"""
"""Runs merge_model.py of the clone that is its argument, without a download; DeCoAR 2.0's class has one size."""
DECOAR2 = lab_models.Lab("decoar2")
WRITERS = {"wavlm": lab_files.wavlm, "decoar2": lab_files.decoar2}
OFFICIAL_NAMES = {"wavlm": "wavlm_base_plus"}
ALPHAS = (0.1, 0.25, 0.37, 0.4, 0.5, 0.6, 0.75, 1.0)
QUANTIZER = ("--layer-alpha", "quantizer.**=0.25", "--layer-alpha", "project_q.**=0.25")

FC1, POSITIONS = "encoder.layers.0.fc1.weight", "encoder.pos_conv.0."
NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def built(lab: Any) -> Weights:
    build = s3prl_models.build_s3prl
    if lab is DECOAR2:
        module = s3prl_models.toolkit("s3prl.upstream.decoar2.decoar2")
        module.args |= sizes()
        build = lambda _: module.Decoar2()  # noqa: E731
    return {name: tensor.clone() for name, tensor in build(lab).state_dict().items()}


def sizes() -> dict[str, Any]:
    """DeCoAR 2.0's constants, made small."""
    constants = s3prl_models.toolkit("s3prl.upstream.decoar2.decoar2").args
    return {name: value for name, value in DECOAR2.settings.items() if name in constants}


def moved(base: Weights, seed: int = 0) -> Weights:
    """A fine-tune of which every tensor moved, also the heads of pre-training."""
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}


class Case:
    """A base and its fine-tunes as files in a folder of their own, for both tools."""

    def __init__(self, clone: Path, lab: Any, base: Weights, finetuned: list[Weights]) -> None:
        self.clone, self.lab = clone, lab
        self.folder = Path(tempfile.mkdtemp())
        self.files = [f"finetuned-{number}.ckpt" for number in range(len(finetuned))]
        self.key = "model" if lab.family in WRITERS else "model_weight"
        self.save(WRITERS.get(lab.family, lab_files.s3prl_base)(lab, base), "base.pt")
        for file, weights in zip(self.files, finetuned, strict=True):
            self.save(lab_files.s3prl_finetune(lab, weights), file)

    def save(self, whole: object, file: str) -> None:
        torch.save(whole, self.folder / file)

    def official(self, alpha: float = 0.25, name: str = "") -> tuple[str, Weights | None]:
        """How the official script ended, and the weights that it wrote."""
        config = {
            "alpha": alpha,
            "base_model_name": name or OFFICIAL_NAMES.get(self.lab.family, self.lab.family),
            "base_model_ckpt_path": "base.pt",
            "finetune_model_paths": self.files,
            "output_dir": f"official-{alpha}",
        }
        (self.folder / "merge.yaml").write_text(yaml.safe_dump(config))
        return self._run([sys.executable, "-c", DRIVER, str(self.clone), json.dumps(sizes())], f"official-{alpha}")

    def ours(self, alpha: float = 0.25, *options: str, base: str = "base.pt") -> tuple[str, Weights | None]:
        """The same of this tool."""
        output = f"ours-{alpha}"
        command = [sys.executable, "-m", "speechft_merge", base, *self.files, "--alpha", str(alpha), *options]
        return self._run([*command, "-o", output, "--overwrite", "-q"], output)

    def _run(self, command: list[str], output: str) -> tuple[str, Weights | None]:
        quiet = os.environ | {"PYTHONWARNINGS": "ignore", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}  # torch of its time
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, env=quiet)
        told = done.stdout.splitlines()
        if done.returncode:  # this tool begins with the error, Python's traceback ends in it
            lines = done.stderr.splitlines()
            told = [next((line for line in lines if line.startswith("speechft-merge: error:")), lines[-1])]
        path = self.folder / output / "merged_model.pt"
        weights = torch.load(path, weights_only=False)[self.key] if path.exists() else None
        written = "nothing is written" if weights is None else "a model is written"
        return f"exit {done.returncode}, {written}: {' '.join(told)[:160]}", weights


def equal(found: Weights | None, wanted: Weights | None) -> str:
    """How many tensors are equal bit for bit, and elements."""
    if found is None or wanted is None:
        return "nothing to compare"
    same = sum(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    elements = sum(int(found[name].ne(tensor).sum()) for name, tensor in wanted.items())
    total = sum(tensor.numel() for tensor in wanted.values())
    return f"{same} of {len(wanted)} tensors equal; {elements} elements differ of {total}"


def good_pairs(clone: Path) -> Iterator[str]:
    for lab in [*(lab for lab in s3prl_models.LABS if not lab.large), DECOAR2]:
        base = built(lab)
        case = Case(clone, lab, base, [moved(base)])
        for alpha in ALPHAS if lab.family == "hubert" else (0.25,):
            yield f"| {lab.family} | 1 | {alpha} | {equal(case.ours(alpha)[1], case.official(alpha)[1])} |"
        if lab.family == "wav2vec2":
            found = equal(case.ours(0.25, *QUANTIZER)[1], case.official()[1])
            yield f"| wav2vec2, `{' '.join(QUANTIZER)}` | 1 | 0.25 | {found} |"
        for count in (2, 3, 4) if lab.family == "hubert" else ():
            case = Case(clone, lab, base, [moved(base, seed) for seed in range(count)])
            yield f"| {lab.family} | {count} | 0.25 | {equal(case.ours()[1], case.official()[1])} |"


def spoilt(base: Weights) -> dict[str, Weights]:
    """Fine-tunes with something wrong."""
    tuned = moved(base)
    nan = tuned[FC1].clone()
    nan[3, 5] = float("nan")
    names = {POSITIONS + old: POSITIONS + new for old, new in NORM.items()}
    generator = torch.Generator().manual_seed(5)
    return {
        "a key missing in the fine-tune": {name: tensor for name, tensor in tuned.items() if name != FC1},
        "an extra key in the fine-tune": {**tuned, "encoder.layers.0.adapter.weight": torch.ones(4, 4)},
        "a shape that would broadcast": {**tuned, FC1: tuned[FC1][:1]},
        "NaN in the fine-tune": {**tuned, FC1: nan},
        "weight norm as parametrizations": {names.get(name, name): tensor for name, tensor in tuned.items()},
        "another base's fine-tune": {n: torch.randn(t.shape, generator=generator) for n, t in tuned.items()},
    }


def difficult(clone: Path) -> Iterator[str]:
    lab = s3prl_models.LABS[0]
    base = built(lab)
    for name, tuned in spoilt(base).items():
        case = Case(clone, lab, base, [tuned])
        yield f"| {name} | {case.official()[0]} | {case.ours()[0]} |"
    case = Case(clone, lab, base, [moved(base)])
    frozen = {"Downstream": {"w": torch.ones(2, 2)}, "Step": 1, "Args": argparse.Namespace(upstream="hubert")}
    unusable = {"an S3PRL file without Upstream": frozen, "a file with no model in it": {"step": 3, "notes": "none"}}
    for name, whole in unusable.items():
        case.save(whole, case.files[0])
        yield f"| {name} | {case.official()[0]} | {case.ours()[0]} |"
    yield f"| an unknown base | {case.official(name='hubbert')[0]} | {case.ours(base='./hubbert')[0]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="of nervjack2/Speech-FT")
    clone = parser.parse_args().clone.resolve()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        print("| model | fine-tunes | alpha | this tool against the official script |\n|---|---|---|---|")
        for line in good_pairs(clone):
            print(line, flush=True)
        print("\n| input | the official script | this tool |\n|---|---|---|")
        for line in difficult(clone):
            print(line, flush=True)


if __name__ == "__main__":
    main()

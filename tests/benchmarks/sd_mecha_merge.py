"""The merge with sd-mecha, run by the Python that has it.

python sd_mecha_merge.py BASE FINETUNED OUTPUT ALPHA DTYPE
"""

import sys
from pathlib import Path

import sd_mecha  # type: ignore[import-not-found]
import torch

base, finetuned, output = (Path(argument).resolve() for argument in sys.argv[1:4])
recipe = sd_mecha.weighted_sum(sd_mecha.model(base), sd_mecha.model(finetuned), alpha=float(sys.argv[4]))
sd_mecha.merge(recipe, output=output, output_dtype=getattr(torch, sys.argv[5]))

"""Other people's toolkits, which load what a merge wrote. Only .ci installs them; elsewhere one line says so."""

from __future__ import annotations

from pathlib import Path

from test_installed import APART, missing, missing_apart

_APART = {f"test_{name}_loads.py" for name in APART}
_TOGETHER = {path.name for path in Path(__file__).parent.glob("test_*_loads.py")} - _APART | {"test_s3prl_stage1.py"}

collect_ignore = [f"test_{name}_loads.py" for name in missing_apart()] + (sorted(_TOGETHER) if missing() else [])

"""Other people's toolkits, which load what a merge wrote. Only .ci/run installs them; elsewhere one line says so."""

from __future__ import annotations

from test_installed import missing

collect_ignore_glob = ["test_*_loads.py"] if missing() else []

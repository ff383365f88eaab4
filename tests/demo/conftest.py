"""Tests here use ``benchmarks`` and ``examples/mnist``, which no package installs."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "mnist")]

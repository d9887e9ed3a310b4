"""Images: the file by hadolint, packages without torch, and builds that run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pytest

from deploy.local.sagemaker.processing import ProcessingJob
from deploy.local.sagemaker.server import SageMaker
from mm_assets.assets.stage import Workspace
from mm_assets.cli import walk, workspace
from mm_assets.resources.receipts import Receipt
from mm_assets_tests.conftest import REPOSITORY
from mm_assets_tests.sagemaker import forget, remote_cohort

IMAGES = REPOSITORY / "deploy" / "images"
EMBEDDINGS = ("tile_embeddings", "region_embeddings")
NEEDED = ("buildah", "debootstrap")
ISOLATION = ("--isolation", "chroot")
CERTIFICATES = Path("/etc/ssl/certs")


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, IMAGES / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_control_plane_does_without_torch(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", tmp_path / "bin" / "python"]
    options = ["--constraint", "constraints.txt", "--override", IMAGES / "without_torch.txt"]
    plain = {**os.environ, "UV_COMPILE_BYTECODE": "0"}
    subprocess.run([*install, *options, ".[auth,k8s,ray]"], cwd=REPOSITORY, env=plain, check=True)
    code = "import importlib.util as u, mm_assets.definitions; print(u.find_spec('torch'))"
    for engine in ("local", "ray", "k8s"):
        done = subprocess.run(
            [tmp_path / "bin" / "python", "-c", f"{code}; mm_assets.definitions.defs()"],
            env={"MM_ENGINE": engine, "MM_HOME": str(tmp_path), "PATH": os.environ["PATH"]},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr


class Buildah:
    """Images in a folder of the test's own, built and run without a daemon."""

    def __init__(self, folder: Path) -> None:
        store = ("--root", str(folder / "store"), "--runroot", str(folder / "run"))
        self.folder = folder
        self._command = ("buildah", "--storage-driver", "vfs", *store)

    def __call__(self, *arguments: str) -> str:
        """Run a command; what it prints."""
        done = subprocess.run(
            [*self._command, *arguments], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert not done.returncode, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout.strip()

    def make_base(self) -> str:
        """Debian that trusts whom this machine trusts, in place of the public image."""
        root = self.folder / "debian"
        subprocess.run(
            # With its certificates: those of this machine are mounted over them while it builds.
            [
                *("debootstrap", "--variant=minbase", "--include=ca-certificates"),
                *("bookworm", str(root)),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        container = self("from", "scratch")
        self("add", "-q", container, str(root), "/")
        for variable in ("SSL_CERT_FILE", "PIP_CERT"):
            self("config", "--env", f"{variable}={CERTIFICATES}/ca-certificates.crt", container)
        return self("commit", "-q", container, "localhost/base") and "localhost/base"

    def build(self, base: str, target: str) -> str:
        """Build a target; a container made of it."""
        self(
            *("build", *ISOLATION, "--format", "docker", "--build-arg", f"BASE={base}"),
            *("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro", "--target", target, "--tag", target),
            *("--file", str(IMAGES / "Dockerfile")),
            *("--ignorefile", str(IMAGES / "Dockerfile.dockerignore"), "."),
        )
        return self("from", target)

    def configuration(self, target: str) -> dict[str, Any]:
        """How containers of a target are started."""
        facts = json.loads(self("inspect", "--type", "image", target))
        found: dict[str, Any] = facts["Docker"]["config"]
        return found

    def shell(self, container: str, script: str) -> str:
        """What a script prints in a container."""
        return self("run", *ISOLATION, container, "--", "sh", "-c", script)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """An empty store of images."""
    if os.geteuid() or not all(map(shutil.which, NEEDED)):
        pytest.skip(f"needs root, {' and '.join(NEEDED)}")
    folder = tmp_path_factory.mktemp("images")
    buildah = Buildah(folder)
    yield buildah
    buildah("rm", "--all")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_images_are_built_and_a_job_in_one_makes_what_is_made_here(
    images: Buildah,
    home: Path,
    tmp_path: Path,
    sagemaker_settings: SageMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = images.make_base()
    _try_control_plane(images, images.build(base, "control-plane"))
    worker = images.build(base, "cpu-worker")
    _try_worker(images, worker)

    yaml, prefix = remote_cohort(tmp_path, slides=2)
    monkeypatch.setenv("MM_STORE", f"s3://artefacts/{prefix}/store")
    space = workspace(str(yaml))
    assert walk(space, ["slide", "tissue", "tile_embeddings"]) == {}
    here = _embeddings(space)
    forget(space, here)
    (job,) = sagemaker_settings.jobs.values()
    _do_in(images, worker, job)
    there = _embeddings(space)
    for asset, receipts in here.items():
        assert {s: r.outputs for s, r in receipts.items()} == {
            s: r.outputs for s, r in there[asset].items()
        }
        assert {r.state for r in there[asset].values()} == {"done"}


def _try_control_plane(images: Buildah, container: str) -> None:
    _try_image(images, "control-plane", container, absent={"torch"})
    assert images.configuration("control-plane")["Healthcheck"]["Test"] == ["CMD", "healthy"]
    assert images.shell(container, "command -v healthy") == "/opt/mm/bin/healthy"
    found = images.shell(container, "mm doctor > doctor; grep -a openslide doctor")
    assert "ok" in found.split()


def _try_worker(images: Buildah, container: str) -> None:
    _try_image(images, "cpu-worker", container, present={"torch", "timm"})
    kind, *check = images.configuration("cpu-worker")["Healthcheck"]["Test"]
    assert kind == "CMD"
    images("run", *ISOLATION, container, "--", *check)
    assert images.shell(container, "command -v train") == "/opt/mm/bin/train"


def _try_image(
    images: Buildah,
    target: str,
    container: str,
    present: Set[str] = frozenset(),
    absent: Set[str] = frozenset(),
) -> None:
    """Who runs in it, on what, of which packages, compiled beforehand."""
    started = images.configuration(target)
    assert (started["User"], started.get("Entrypoint") or []) == ("10001", [])
    assert set(started["Volumes"]) == {"/tmp", "/home/mm"}
    assert images.shell(container, "touch /tmp/own /home/mm/own && id -u") == "10001"
    bill = json.loads(images.shell(container, "cat /opt/mm/sbom.json"))
    packages = {part["name"] for part in bill["components"]}
    assert packages >= {"mm-assets", "dagster", *present}
    assert not packages & absent
    assert images.shell(container, "grep ^libc6 /opt/debian-packages.txt")
    compiled = "ls /opt/mm/lib/python3*/site-packages/mm_assets/__pycache__/cli.*.pyc"
    assert images.shell(container, compiled)


def _embeddings(space: Workspace) -> dict[str, dict[str, Receipt]]:
    return {asset: space.receipts.read_all("tiny", asset) for asset in EMBEDDINGS}


def _do_in(images: Buildah, container: str, job: ProcessingJob) -> None:
    """What the job was asked for, once more and in a container."""
    environment = {
        **{key: os.environ[key] for key in os.environ if key.startswith("AWS_")},
        **job.request["Environment"],
    }
    given = [part for item in environment.items() for part in ("--env", "=".join(item))]
    application = job.request["AppSpecification"]
    words = application["ContainerEntrypoint"] + application["ContainerArguments"]
    folder = ("--volume", f"{job.folder}/opt/ml:/opt/ml")
    images("run", *ISOLATION, *folder, "--user", "mm", *given, container, "--", *words)

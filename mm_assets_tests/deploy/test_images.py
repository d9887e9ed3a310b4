"""Images: the file by hadolint, packages without torch, and builds that run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.sagemaker.server import SageMaker
from mm_assets.cli import walk, workspace
from mm_assets_tests.conftest import REPOSITORY
from mm_assets_tests.sagemaker import forget, remote_cohort

IMAGES = REPOSITORY / "deploy" / "images"
EMBEDDINGS = ("tile_embeddings", "region_embeddings")
NEEDED = ("buildah", "debootstrap")
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
        """Run a command; its last line."""
        done = subprocess.run(
            [*self._command, *arguments], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert not done.returncode, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout.strip().rpartition("\n")[2]

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
            *(
                "build",
                "--isolation",
                "chroot",
                "--format",
                "docker",
                "--build-arg",
                f"BASE={base}",
            ),
            *("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro", "--target", target, "--tag", target),
            *("--file", str(IMAGES / "Dockerfile")),
            *("--ignorefile", str(IMAGES / "Dockerfile.dockerignore"), "."),
        )
        return self("from", target)


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
    control = images.build(base, "control-plane")
    facts = "mm doctor > doctor; grep -c openslide doctor; id -u"
    shown = images("run", "--isolation", "chroot", control, "--", "sh", "-c", facts)
    assert shown == "10001"
    worker = images.build(base, "cpu-worker")

    yaml, prefix = remote_cohort(tmp_path, slides=2)
    monkeypatch.setenv("MM_STORE", f"s3://artefacts/{prefix}/store")
    space = workspace(str(yaml))
    assert walk(space, ["slide", "tissue", "tile_embeddings"]) == {}
    here = {asset: space.receipts.read_all("tiny", asset) for asset in EMBEDDINGS}
    forget(space, here)
    (job,) = sagemaker_settings.jobs.values()
    environment = {
        **{key: os.environ[key] for key in os.environ if key.startswith("AWS_")},
        **job.request["Environment"],
    }
    given = [part for item in environment.items() for part in ("--env", "=".join(item))]
    application = job.request["AppSpecification"]
    words = application["ContainerEntrypoint"] + application["ContainerArguments"]
    options = ("--isolation", "chroot", "--volume", f"{job.folder}/opt/ml:/opt/ml", "--user", "mm")
    images("run", *options, *given, worker, "--", *words)
    there = {asset: space.receipts.read_all("tiny", asset) for asset in EMBEDDINGS}
    for asset, receipts in here.items():
        assert {s: r.outputs for s, r in receipts.items()} == {
            s: r.outputs for s, r in there[asset].items()
        }
        assert {r.state for r in there[asset].values()} == {"done"}

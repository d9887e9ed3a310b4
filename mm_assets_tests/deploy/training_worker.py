"""What training jobs in tests run: behaves as its hyper-parameters say."""

import json
import os
import signal
import sys
import time
from pathlib import Path

ML = Path("/opt/ml")


def trained(told: dict[str, str]) -> None:
    """Sum of the channel's numbers as model, a loss in the log."""
    files = sorted((ML / "input/data/train").rglob("*.txt"))
    total = sum(float(file.read_text()) for file in files)
    for epoch in range(3):
        print(f"epoch {epoch} loss={total / (epoch + 1):.3f}")
    (ML / "model/weights").mkdir()
    (ML / "model/weights/sum.json").write_text(json.dumps(total))
    (ML / "output/data/curve.txt").write_text("down")


def told_everything(told: dict[str, str]) -> None:
    """What the job sees of its surroundings, as model."""
    config = {file.stem: json.loads(file.read_text()) for file in ML.glob("input/config/*.json")}
    mounts = Path("/proc/self/mountinfo").read_text()
    own = ML / "own"
    own.write_text(told["mark"])
    time.sleep(1)  # for another job to write to its own
    seen = {
        "arguments": sys.argv[1:],
        "config": config,
        "environment": dict(os.environ),
        "mounts": [line.split()[4] for line in mounts.splitlines()],
        "own": own.read_text(),
        "names": sorted(path.name for path in ML.iterdir()),
    }
    (ML / "model/seen.json").write_text(json.dumps(seen))


def failed(told: dict[str, str]) -> None:
    """Says why it fails."""
    (ML / "model/half").write_text("half")
    (ML / "output/failure").write_text("the labels are constant")
    sys.exit(3)


def endless(told: dict[str, str]) -> None:
    """Counts on from its checkpoint; told to end, it leaves a model or does not listen."""

    def end(*_: object) -> None:
        if told.get("stubborn") != "yes":
            (ML / "model/last").write_text("saved in time")
            sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    checkpoint = ML / "checkpoints/step"
    if checkpoint.parent.is_dir():
        step = int(checkpoint.read_text()) if checkpoint.exists() else 0
        checkpoint.write_text(str(step + 1))
    print("begun", flush=True)
    while True:
        time.sleep(0.1)


def tuned(told: dict[str, str]) -> None:
    """A loss that is least where `rate` is 0.1 and `kind` is `b`."""
    rate, depth = float(told["rate"]), int(told["depth"])
    assert 0.001 <= rate <= 1
    assert depth in range(2, 9)
    if told["_tuning_objective_metric"] != "loss":
        sys.exit(1)
    if told["kind"] == told.get("broken_kind"):
        (ML / "output/failure").write_text("this kind does not work")
        sys.exit(1)
    print(f"loss={(rate - 0.1) ** 2 + (told['kind'] != 'b') + depth / 1000:.6f};")
    if told.get("slow") == "yes":
        time.sleep(600)


def gains(told: dict[str, str]) -> None:
    """A gain that is the rate; what is slow ends, and leaves its model, late after a signal."""

    def end(*_: object) -> None:
        time.sleep(1)
        (ML / "model/late").write_text("late")
        sys.exit(1)

    signal.signal(signal.SIGTERM, end)
    print(f"gain={float(told['rate'])!r};", flush=True)
    if told["fails"] in os.environ["TRAINING_JOB_NAME"]:
        sys.exit(1)
    if told["slow"] in os.environ["TRAINING_JOB_NAME"]:
        time.sleep(600)


if __name__ == "__main__":
    hyperparameters = json.loads((ML / "input/config/hyperparameters.json").read_text())
    globals()[hyperparameters["behaviour"]](hyperparameters)

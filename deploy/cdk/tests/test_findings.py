"""What cfn-lint and checkov say of the templates, and that nothing is acknowledged for nothing.

cdk-nag speaks when a stage is synthesized: a finding that nobody acknowledged fails that.
"""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import aws_cdk as cdk
import pytest
from acknowledged import acknowledgements
from app import Base, ControlPlane, context
from cdk_nag import AwsSolutionsChecks
from conftest import Synthesized, stage_named

PROGRAMS = Path(sys.executable).parent
TOOLS = ("cdk-nag", "cfn-lint", "checkov")


def test_cfn_lint(synthesized: Synthesized) -> None:
    templates = sorted(synthesized.folder.glob("*.template.json"))
    done = subprocess.run(
        [PROGRAMS / "cfn-lint", "--format", "json", "--include-checks", "W", "--", *templates],
        capture_output=True,
        text=True,
        check=False,
    )
    found = {finding["Rule"]["Id"] for finding in json.loads(done.stdout or "[]")}
    assert found == {known.finding for known in acknowledgements("cfn-lint")}


def test_checkov(synthesized: Synthesized) -> None:
    done = subprocess.run(
        [
            *(PROGRAMS / "checkov", "--framework", "cloudformation", "--output", "json"),
            *("--quiet", "--directory", synthesized.folder),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    results = json.loads(done.stdout)
    assert results["summary"]["passed"] > 300
    found = {
        (check["check_id"], check["resource"]) for check in results["results"]["failed_checks"]
    }
    known = {
        (one.finding, resource)
        for one in acknowledgements("checkov")
        for resource in one.constructs
    }
    assert found == known


def test_every_acknowledgement_has_a_reason_and_a_day() -> None:
    for tool in TOOLS:
        known = acknowledgements(tool)
        assert known
        for one in known:
            assert len(one.reason) > 15
            assert date(2026, 1, 1) <= date.fromisoformat(one.date) <= date.today()


def test_without_acknowledgements_cdk_nag_finds_just_those(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stage = stage_named("test")
    app = cdk.App(outdir=str(tmp_path), context=context(stage))
    ControlPlane(app, stage, Base(app, stage))
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    with pytest.raises(RuntimeError, match="Validation"):
        app.synth()
    report = (tmp_path / "validation-report.json").read_text()
    found = {
        (violation["ruleName"], construct["constructPath"])
        for plugin in json.loads(report)["pluginReports"]
        if plugin["pluginName"] == "AwsSolutions"
        for violation in plugin["violations"]
        for construct in violation["violatingConstructs"]
    }
    known = {
        (one.finding.replace("{account}", stage.account), path)
        for one in acknowledgements("cdk-nag")
        for path in one.constructs
    }
    assert found == known

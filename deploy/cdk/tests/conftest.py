"""Both stages, synthesized once."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from app import build
from settings import IMAGES, Stage

ACCOUNTS = {"test": "111111111111", "prod": "222222222222"}


def stage_named(name: str) -> Stage:
    """A stage with made-up addresses."""
    return Stage(
        name=name,
        account=ACCOUNTS[name],
        domain="mm.example.org",
        certificate=f"arn:aws:acm:eu-west-2:{ACCOUNTS[name]}:certificate/00000000",
        issuer="https://login.example.org",
        authorization_endpoint="https://login.example.org/oauth2/v2/auth",
        token_endpoint="https://tokens.example.org/oauth2",
        userinfo_endpoint="https://login.example.org/me",
        client_version="2026-12",
        scope="openid email groups",
        groups={"operators": "groups=mm-operators", "viewers": ""},
        repository="example/mm_assets",
        digests={image: f"sha256:{number:064x}" for number, image in enumerate(IMAGES)},
        alarm_email="operators@example.org",
    )


def variables(stage: Stage) -> dict[str, str]:
    """What the deployer sets to describe a stage."""
    given = {
        "STAGE": stage.name,
        "ACCOUNT": stage.account,
        "DOMAIN": stage.domain,
        "CERTIFICATE": stage.certificate,
        "ISSUER": stage.issuer,
        "AUTHORIZATION_ENDPOINT": stage.authorization_endpoint,
        "TOKEN_ENDPOINT": stage.token_endpoint,
        "USERINFO_ENDPOINT": stage.userinfo_endpoint,
        "CLIENT_VERSION": stage.client_version,
        "SCOPE": stage.scope,
        "OPERATORS": stage.groups["operators"],
        "VIEWERS": stage.groups["viewers"],
        "REPOSITORY": stage.repository,
        "ALARM_EMAIL": stage.alarm_email,
        **{f"{i.replace('-', '_').upper()}_DIGEST": stage.digests[i] for i in IMAGES},
    }
    return {f"MM_DEPLOY_{name}": text for name, text in given.items()}


@dataclass(frozen=True)
class Synthesized:
    """What `cdk synth` leaves for one stage."""

    stage: Stage
    folder: Path

    @property
    def templates(self) -> list[dict[str, Any]]:
        """Base, then services."""
        return [
            json.loads((self.folder / f"mm-assets-{part}.template.json").read_text())
            for part in ("base", "services")
        ]

    def resources(self, kind: str) -> list[dict[str, Any]]:
        """Properties of all resources of a type, such as ``AWS::S3::Bucket``."""
        return [
            found.get("Properties", {})
            for template in self.templates
            for found in template["Resources"].values()
            if found["Type"] == kind
        ]


@pytest.fixture(scope="session", params=["test", "prod"])
def synthesized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One stage after the other; cdk-nag's findings that nobody acknowledged end the synthesis."""
    stage = stage_named(request.param)
    folder = tmp_path_factory.mktemp(stage.name)
    build(stage, str(folder)).synth()
    return Synthesized(stage, folder)

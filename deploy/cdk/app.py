"""The infrastructure of one stage: ``cdk synth`` with the ``MM_DEPLOY_*`` variables set."""

import aws_cdk as cdk
from acknowledged import acknowledge
from cdk_nag import AwsSolutionsChecks
from constructs import Construct
from database import Database
from delivery import Delivery
from gpu import GpuCapacity
from guardrails import Guardrails
from login import Login
from network import Network
from roles import Roles
from services import GROUPS, Services
from settings import REGION, ZONES, Stage, stage_from_environment
from storage import Storage

# Behaviour that CDK has only for who asks for it.
SWITCHES = {
    "@aws-cdk/aws-s3:serverAccessLogsUseBucketPolicy": True,
    "@aws-cdk/aws-iam:minimizePolicies": True,
    "@aws-cdk/core:enablePartitionLiterals": True,
    "@aws-cdk/aws-ec2:restrictDefaultSecurityGroup": False,
    "@aws-cdk/aws-autoscaling:generateLaunchTemplateInsteadOfLaunchConfig": True,
}


class Base(cdk.Stack):
    """What keeps data, and what must be there before images can be pushed."""

    def __init__(self, scope: Construct, stage: Stage) -> None:
        super().__init__(scope, "mm-assets-base", env=_place(stage), termination_protection=True)
        self.storage = Storage(self, "Storage", stage)
        self.network = Network(self, "Network", self.storage.key)
        self.databases = {
            name.lower(): Database(self, name, stage, self.network, self.storage.key)
            for name in ("Dagster", "Mlflow")
        }
        self.roles = Roles(self, "Roles", stage, self.storage)
        Delivery(self, "Delivery", stage, self.storage)


class ControlPlane(cdk.Stack):
    """What runs, and may be replaced at any time."""

    def __init__(self, scope: Construct, stage: Stage, base: Base) -> None:
        super().__init__(scope, "mm-assets-services", env=_place(stage))
        network, storage, databases = base.network, base.storage, base.databases
        login = Login(self, "Login", stage, network, storage, base.roles)
        services = Services(self, "Services", stage, network, storage, base.roles, databases, login)
        GpuCapacity(self, "Gpu", stage, network, services.cluster, storage.key)
        login.show(1, "ui", GROUPS["web"], services.web, 3000, "/server_info")
        login.show(2, "models", "operators", services.mlflow, 5000, "/health")
        login.show(3, "view", GROUPS["web-read-only"], services.web_read_only, 3000, "/server_info")
        Guardrails(self, "Guardrails", stage, storage.key, services, [*databases.values()])


def context(stage: Stage) -> dict[str, object]:
    """What CDK would else ask the account for, and its switches."""
    zones = f"availability-zones:account={stage.account}:region={REGION}"
    return {**SWITCHES, zones: list(ZONES)}


def build(stage: Stage, folder: str | None = None) -> cdk.App:
    """The app of a stage, checked by cdk-nag when it is synthesized."""
    app = cdk.App(outdir=folder, analytics_reporting=False, context=context(stage))
    ControlPlane(app, stage, Base(app, stage))
    cdk.Tags.of(app).add("project", "mm-assets")
    cdk.Tags.of(app).add("stage", stage.name)
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    acknowledge(app, stage.account)
    return app


def _place(stage: Stage) -> cdk.Environment:
    return cdk.Environment(account=stage.account, region=REGION)


if __name__ == "__main__":
    build(stage_from_environment()).synth()

"""PostgreSQL for Dagster and for MLflow, apart: neither can read the other's."""

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_kms as kms
from aws_cdk import aws_rds as rds
from constructs import Construct
from log_groups import kept_log
from network import Network
from settings import Stage

VERSION = rds.PostgresEngineVersion.VER_16_9
LOGS = ("postgresql", "upgrade")
PORT = 5433  # not the one that scanners try


class Database(Construct):
    """One server with one database and a secret of its own."""

    def __init__(
        self, scope: Construct, name: str, stage: Stage, network: Network, key: kms.IKey
    ) -> None:
        super().__init__(scope, name)
        self.name = name.lower()
        engine = rds.DatabaseInstanceEngine.postgres(version=VERSION)
        group = ec2.SecurityGroup(
            self,
            "Group",
            vpc=network.vpc,
            description=f"PostgreSQL of {name}",
            allow_all_outbound=False,
        )
        network.workers.connections.allow_to(group, ec2.Port.tcp(PORT), f"PostgreSQL of {name}")
        identifier = f"mm-assets-{self.name}"
        # Else AWS makes the groups on the first line, and keeps them for ever without our key.
        groups = [
            kept_log(self, f"Log-{log}", f"/aws/rds/instance/{identifier}/{log}", key)
            for log in LOGS
        ]
        self.instance = rds.DatabaseInstance(
            self,
            "Server",
            instance_identifier=identifier,
            engine=engine,
            parameter_group=rds.ParameterGroup(
                self,
                "Parameters",
                engine=engine,
                parameters={"rds.force_ssl": "1", "log_statement": "ddl"},
            ),
            instance_type=ec2.InstanceType("m6g.large" if stage.production else "t4g.medium"),
            vpc=network.vpc,
            vpc_subnets=network.work,
            security_groups=[group],
            port=PORT,
            database_name=self.name,
            credentials=rds.Credentials.from_generated_secret(self.name, encryption_key=key),
            allocated_storage=50,
            max_allocated_storage=500,
            storage_encrypted=True,
            storage_encryption_key=key,
            multi_az=True,
            auto_minor_version_upgrade=False,
            backup_retention=Duration.days(35 if stage.production else 7),
            copy_tags_to_snapshot=True,
            deletion_protection=True,
            removal_policy=RemovalPolicy.RETAIN,
            iam_authentication=True,
            cloudwatch_logs_exports=[*LOGS],
            enable_performance_insights=True,
            performance_insight_encryption_key=key,
            monitoring_interval=Duration.minutes(1),
        )
        self.instance.node.add_dependency(*groups)

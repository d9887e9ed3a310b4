"""The long-running services and the tasks that runs are, on ECS."""

from collections.abc import Mapping, Sequence

from aws_cdk import Duration
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_secretsmanager as secrets
from aws_cdk import aws_servicediscovery as discovery
from constructs import Construct
from database import PORT, Database
from log_groups import kept_log
from login import Login
from network import Network
from roles import MLFLOW_LOGIN, Roles
from settings import REGION, Stage
from storage import Storage

RUNS, GPU_RUNS = "mm-assets-run", "mm-assets-run-gpu"
GPU_CAPACITY = "mm-assets-gpu"
GPU_MEMORY = 30 * 1024  # what ECS has to give of a machine with 32 GiB
NAMESPACE = "mm-assets.internal"
WEB = ("python", "-m", "mm_assets.shared_web")
# Web service -> whose pages it serves.
GROUPS = {"web": "operators", "web-read-only": "viewers"}
MLFLOW = ("python", "-m", "mm_assets.shared_mlflow")

HEALTH = ecs.HealthCheck(
    command=["CMD", "healthy"],
    interval=Duration.minutes(1),
    timeout=Duration.seconds(60),
    start_period=Duration.minutes(2),
)


class Services(Construct):
    """The control plane: small, always on, without torch."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        stage: Stage,
        network: Network,
        storage: Storage,
        roles: Roles,
        databases: Mapping[str, Database],
        login: Login,
    ) -> None:
        super().__init__(scope, name)
        self.stage, self.network, self.storage, self.roles = stage, network, storage, roles
        self.databases, self.login = databases, login
        self.cluster = ecs.Cluster(
            self,
            "Cluster",
            cluster_name="mm-assets",
            vpc=network.vpc,
            container_insights_v2=ecs.ContainerInsights.ENABLED,
            default_cloud_map_namespace=ecs.CloudMapNamespaceOptions(
                name=NAMESPACE, vpc=network.vpc
            ),
        )
        self.admin = self._secret(
            MLFLOW_LOGIN.removeprefix("mm-assets/"),
            "What operators and services log in to MLflow with.",
        )
        self.signing = self._secret("mlflow-signing", "MLflow's key for sessions.")
        self.web = self._service("web", roles.web, WEB, 3000)
        self.web_read_only = self._service(
            "web-read-only", roles.web_read_only, [*WEB, "--read-only"], 3000
        )
        daemon = ("dagster-daemon", "run", "-w", "/opt/dagster/workspace.yaml")
        self.daemon = self._service("daemon", roles.daemon, daemon)
        code = ("dagster", "code-server", "start", "-h", "0.0.0.0", "-p", "4000")
        self.code = self._service("code", roles.code, [*code, "-m", "mm_assets.definitions"], 4000)
        self.mlflow = self._service("mlflow", roles.mlflow, MLFLOW, 5000)
        self.run = self._definition("run", roles.run, "cpu-worker", 4096, 16384)
        self._container(self.run, "run", "cpu-worker", ["dagster", "api", "execute_run"])
        self._gpu_run()

    def _service(
        self,
        name: str,
        role: iam.Role,
        command: Sequence[str],
        port: int | None = None,
    ) -> ecs.FargateService:
        definition = self._definition(name, role, "control-plane", 1024, 4096)
        self._container(definition, name, "control-plane", command, port)
        return ecs.FargateService(
            self,
            f"{name}-service",
            cluster=self.cluster,
            task_definition=definition,
            desired_count=1,
            # Two daemons would start every run twice.
            min_healthy_percent=0 if name == "daemon" else 100,
            max_healthy_percent=100 if name == "daemon" else 200,
            circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
            vpc_subnets=self.network.work,
            security_groups=[self.network.workers],
            cloud_map_options=ecs.CloudMapOptions(
                name=name, dns_record_type=discovery.DnsRecordType.A
            ),
        )

    def _definition(
        self, name: str, role: iam.Role, image: str, cpu: int, memory: int
    ) -> ecs.FargateTaskDefinition:
        return ecs.FargateTaskDefinition(
            self,
            f"{name}-task",
            family=f"mm-assets-{name}",
            cpu=cpu,
            memory_limit_mib=memory,
            ephemeral_storage_gib=100 if image == "cpu-worker" else None,
            task_role=role.without_policy_updates(),
            execution_role=self.roles.execution.without_policy_updates(),
            volumes=[ecs.Volume(name=part) for part in ("home", "tmp")],
        )

    def _gpu_run(self) -> None:
        """What steps that want a GPU are: the same as runs, on a machine of the capacity."""
        definition = ecs.Ec2TaskDefinition(
            self,
            "run-gpu-task",
            family=GPU_RUNS,
            network_mode=ecs.NetworkMode.AWS_VPC,
            task_role=self.roles.run.without_policy_updates(),
            execution_role=self.roles.execution.without_policy_updates(),
            volumes=[ecs.Volume(name=part) for part in ("home", "tmp")],
        )
        step = ["dagster", "api", "execute_step"]
        self._container(definition, "run-gpu", "gpu-worker", step, gpus=1)

    def _container(
        self,
        definition: ecs.TaskDefinition,
        name: str,
        image: str,
        command: Sequence[str],
        port: int | None = None,
        gpus: int | None = None,
    ) -> None:
        group = kept_log(self, f"{name}-log", f"mm-assets/{name}", self.storage.key)
        container = definition.add_container(
            # Dagster looks for "run" in whatever it starts.
            name.removesuffix("-gpu"),
            gpu_count=gpus,
            memory_limit_mib=GPU_MEMORY if gpus else None,
            image=ecs.ContainerImage.from_ecr_repository(
                self.storage.repositories[image], self.stage.digests[image]
            ),
            command=list(command),
            user="10001",
            readonly_root_filesystem=True,
            environment=self._environment(name),
            secrets=self._secrets(name),
            logging=ecs.LogDrivers.aws_logs(stream_prefix=name, log_group=group),
            port_mappings=[ecs.PortMapping(container_port=port)] if port else None,
            health_check=HEALTH if image == "control-plane" else None,
        )
        for part, place in {"home": "/home/mm", "tmp": "/tmp"}.items():
            container.add_mount_points(
                ecs.MountPoint(container_path=place, source_volume=part, read_only=False)
            )

    def _environment(self, name: str) -> dict[str, str]:
        buckets, domain = self.storage.buckets, self.stage.domain
        models = f"https://models.{domain}"
        owner = "mlflow" if name == "mlflow" else "dagster"
        server = self.databases[owner].instance
        return {
            "AWS_REGION": REGION,
            f"{owner.upper()}_PG_HOST": server.db_instance_endpoint_address,
            f"{owner.upper()}_PG_PORT": str(PORT),
            f"{owner.upper()}_PG_DATABASE": owner,
            "MM_CODE_HOST": f"code.{NAMESPACE}",
            "MM_COHORTS": f"s3://{buckets['store'].bucket_name}/cohorts",
            "MM_DAGSTER_URL": f"https://ui.{domain}",
            "MM_ENGINE": "ecs",
            "MM_GPU_CAPACITY_PROVIDER": GPU_CAPACITY,
            "MM_GPU_TASK_DEFINITION": GPU_RUNS,
            "MM_LAUNCHER": "sagemaker",
            "MM_LOG_BUCKET": buckets["logs"].bucket_name,
            "MM_MLFLOW_URL": models,
            "MM_RUN_TASK_DEFINITION": RUNS,
            "MM_SAGEMAKER_IMAGE": self.storage.repositories["gpu-worker"].repository_uri_for_digest(
                self.stage.digests["gpu-worker"]
            ),
            "MM_SAGEMAKER_MLFLOW_SECRET": MLFLOW_LOGIN,
            "MM_SAGEMAKER_REGISTRY": "1",
            "MM_SAGEMAKER_ROLE": self.roles.job.role_arn,
            "MM_SAGEMAKER_SECURITY_GROUPS": self.network.workers.security_group_id,
            "MM_SAGEMAKER_SUBNETS": ",".join(
                subnet.subnet_id for subnet in self.network.vpc.isolated_subnets
            ),
            "MM_STORE": f"s3://{buckets['store'].bucket_name}",
            "MLFLOW_ARTIFACTS": f"s3://{buckets['store'].bucket_name}/models",
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"mlflow.{NAMESPACE}:5000,models.{domain}",
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": models,
            "MLFLOW_TRACKING_URI": f"http://mlflow.{NAMESPACE}:5000",
            "PGSSLMODE": "require",
            **({} if self.stage.production else {"MM_SYNTHETIC_ONLY": "1"}),
            **(self.login.variables(GROUPS[name]) if name in GROUPS else {}),
        }

    def _secrets(self, name: str) -> dict[str, ecs.Secret]:
        owner = "mlflow" if name == "mlflow" else "dagster"
        known = self.databases[owner].instance.secret
        assert known
        prefix = f"{owner.upper()}_PG"
        given = {
            f"{prefix}_USERNAME": ecs.Secret.from_secrets_manager(known, "username"),
            f"{prefix}_PASSWORD": ecs.Secret.from_secrets_manager(known, "password"),
            "MLFLOW_TRACKING_USERNAME": ecs.Secret.from_secrets_manager(self.admin, "username"),
            "MLFLOW_TRACKING_PASSWORD": ecs.Secret.from_secrets_manager(self.admin, "password"),
        }
        if name == "mlflow":
            signing = ecs.Secret.from_secrets_manager(self.signing, "password")
            given["MLFLOW_FLASK_SERVER_SECRET_KEY"] = signing
        return given

    def _secret(self, name: str, purpose: str) -> secrets.Secret:
        return secrets.Secret(
            self,
            name,
            secret_name=f"mm-assets/{name}",
            description=purpose,
            encryption_key=self.storage.key,
            generate_secret_string=secrets.SecretStringGenerator(
                secret_string_template='{"username": "mm-assets"}',
                generate_string_key="password",
                exclude_punctuation=True,
                password_length=40,
            ),
        )

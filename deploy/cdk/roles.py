"""The roles of services, runs and jobs, each with what it needs and no more (see matrix.csv)."""

from collections.abc import Sequence

from aws_cdk import aws_iam as iam
from constructs import Construct
from settings import REGION, Stage
from storage import JOB_LOGS, Storage

READ = ("s3:GetObject",)
WRITE = ("s3:PutObject", "s3:AbortMultipartUpload")
USE_KEY = ("kms:Decrypt", "kms:GenerateDataKey")
# What a run does with SageMaker: kind of resource -> actions.
SAGEMAKER = {
    "processing-job": ("CreateProcessingJob", "DescribeProcessingJob", "StopProcessingJob"),
    "training-job": ("CreateTrainingJob", "DescribeTrainingJob", "StopTrainingJob"),
    "hyper-parameter-tuning-job": (
        *("CreateHyperParameterTuningJob", "DescribeHyperParameterTuningJob"),
        *("StopHyperParameterTuningJob", "ListTrainingJobsForHyperParameterTuningJob"),
    ),
    "model-package-group": (
        *("CreateModelPackageGroup", "DescribeModelPackageGroup"),
        "CreateModelPackage",
    ),
    "model-package": (
        *("CreateModelPackage", "DescribeModelPackage"),
        *("UpdateModelPackage", "ListModelPackages"),
    ),
}
TASKS, JOBS = "ecs-tasks.amazonaws.com", "sagemaker.amazonaws.com"
LOGIN_KEYS = "mm-assets-login-keys"
LOGIN_KEYS_LOG = "mm-assets/login-keys"
PRINTED = "logs/compute_logs/*"
COHORTS, WEIGHTS = "cohorts/*", "weights/*"  # of the store
MLFLOW_LOGIN = "mm-assets/mlflow-admin"  # Secrets Manager adds a suffix to the name


class Roles(Construct):
    """Roles by name; log groups, tasks, jobs and models of the account carry the prefix `mm-`."""

    def __init__(self, scope: Construct, name: str, stage: Stage, storage: Storage) -> None:
        super().__init__(scope, name)
        self.stage, self.storage = stage, storage
        self.execution = self._execution()
        self.job = self._job()
        self.run = self._run()
        self._start(self.run, "mm-assets-run", "mm-assets-run-gpu")
        self.code = self._code()
        # Both are read, and written by people alone, but for the demo of the test stage.
        for role in (self.job, self.code):
            self._keep_from(role, COHORTS, WEIGHTS)
        self._keep_from(self.run, *([COHORTS] if stage.production else []), WEIGHTS)
        if not stage.production:
            self._objects(self.run, WRITE, "slides/synthetic/*")
        self.daemon = self._daemon()
        self.web = self._web()
        self.web_read_only = self._task("web-read-only")
        self._objects(self.web_read_only, READ, PRINTED)
        self.login_keys = self._login_keys()
        for role in (self.run, self.code, self.daemon, self.web, self.web_read_only):
            # Whoever reads Dagster's settings looks up what runs are made of.
            self._allow(role, ["ecs:DescribeTaskDefinition"], ["*"])
        self.mlflow = self._task("mlflow")
        self._objects(self.mlflow, (*READ, *WRITE, "s3:DeleteObject"), "store/models/*")
        self.deidentifier = self._task("deidentifier")
        self._objects(self.deidentifier, READ, "quarantine/*")
        self._objects(self.deidentifier, WRITE, "slides/*")
        self.uploader = self._uploader()

    def _task(self, name: str) -> iam.Role:
        return self._role(name, TASKS)

    def _role(self, name: str, service: str) -> iam.Role:
        here = {"StringEquals": {"aws:SourceAccount": self.stage.account}}
        return iam.Role(
            self,
            name,
            role_name=f"mm-assets-{name}",
            assumed_by=iam.ServicePrincipal(service, conditions=here),
        )

    def _objects(self, role: iam.Role, actions: Sequence[str], *places: str) -> None:
        """Actions on objects of ``bucket/prefix*``, with the key and, for readers, the listing."""
        names = [place.partition("/") for place in places]
        buckets = {bucket: self.storage.buckets[bucket] for bucket, _, _ in names}
        self._allow(role, actions, [buckets[b].arn_for_objects(prefix) for b, _, prefix in names])
        if set(READ) & set(actions):
            for bucket, _, prefix in names:
                within = None if prefix == "*" else {"StringLike": {"s3:prefix": prefix}}
                self._allow(role, ["s3:ListBucket"], [buckets[bucket].bucket_arn], within)
        if set(buckets) - {"logs"}:
            writes = set(WRITE) & set(actions)
            self._allow(role, USE_KEY if writes else USE_KEY[:1], [self.storage.key.key_arn])

    def _keep_from(self, role: iam.Role, *places: str) -> None:
        store = self.storage.buckets["store"]
        role.add_to_policy(
            iam.PolicyStatement(
                effect=iam.Effect.DENY,
                actions=[*WRITE, "s3:DeleteObject"],
                resources=[store.arn_for_objects(place) for place in places],
            )
        )

    def _allow(
        self,
        role: iam.Role,
        actions: Sequence[str],
        resources: Sequence[str],
        conditions: dict[str, dict[str, str]] | None = None,
    ) -> None:
        role.add_to_policy(
            iam.PolicyStatement(
                actions=list(actions), resources=list(resources), conditions=conditions
            )
        )

    def _pass(self, role: iam.Role, service: str, *passed: iam.Role) -> None:
        to = {"StringEquals": {"iam:PassedToService": service}}
        self._allow(role, ["iam:PassRole"], [one.role_arn for one in passed], to)

    def _arn(self, service: str, resource: str) -> str:
        return f"arn:aws:{service}:{REGION}:{self.stage.account}:{resource}"

    def _execution(self) -> iam.Role:
        """What ECS itself does to start a task: images, secrets, logs."""
        role = self._task("execution")
        self._pull(role)
        group = self._arn("logs", "log-group:mm-assets/*")
        self._allow(role, ["logs:CreateLogStream", "logs:PutLogEvents"], [group])
        secrets = self._arn("secretsmanager", "secret:mm-assets/*")
        self._allow(role, ["secretsmanager:GetSecretValue"], [secrets])
        self._allow(role, ["kms:Decrypt"], [self.storage.key.key_arn])
        return role

    def _pull(self, role: iam.Role) -> None:
        images = [repository.repository_arn for repository in self.storage.repositories.values()]
        verbs = ("BatchGetImage", "GetDownloadUrlForLayer", "BatchCheckLayerAvailability")
        self._allow(role, [f"ecr:{verb}" for verb in verbs], images)
        self._allow(role, ["ecr:GetAuthorizationToken"], ["*"])

    def _job(self) -> iam.Role:
        """A SageMaker job: reads slides, writes artefacts, logs in to MLflow."""
        role = self._role("job", JOBS)
        self._objects(role, READ, "slides/*", "store/*")
        self._objects(role, WRITE, "store/*")
        # New evidence of a slide takes the place of the crops there were.
        self._objects(role, ["s3:DeleteObject"], "store/*/evidence_*/*.crop*")
        self._pull(role)
        login = self._arn("secretsmanager", f"secret:{MLFLOW_LOGIN}-*")
        self._allow(role, ["secretsmanager:GetSecretValue"], [login])
        self._allow(role, ["cloudwatch:PutMetricData"], ["*"])
        self._allow(role, ["logs:CreateLogStream", "logs:PutLogEvents"], self._job_logs())
        interfaces = ("Create", "Delete", "Describe")
        network = [f"ec2:{verb}NetworkInterface{'s' * (verb == 'Describe')}" for verb in interfaces]
        network += [f"ec2:{verb}NetworkInterfacePermission" for verb in ("Create", "Delete")]
        network += ["ec2:DescribeVpcs", "ec2:DescribeSubnets"]
        network += ["ec2:DescribeSecurityGroups", "ec2:DescribeDhcpOptions"]
        self._allow(role, network, ["*"])
        return role

    def _run(self) -> iam.Role:
        """A run: what a job may do with the store, the jobs themselves, and registered models."""
        role = self._task("run")
        self._objects(role, READ, "slides/*", "store/*")
        self._objects(role, (*WRITE, "s3:DeleteObject"), "store/*")
        self._objects(role, WRITE, PRINTED)
        for kind, actions in SAGEMAKER.items():
            tags = ("AddTags",) if kind.endswith("-job") else ()
            names = [f"sagemaker:{action}" for action in (*actions, *tags)]
            self._allow(role, names, [self._arn("sagemaker", f"{kind}/mm-*")])
        self._pass(role, JOBS, self.job)
        self._allow(role, ["logs:DescribeLogStreams", "logs:GetLogEvents"], self._job_logs())
        return role

    def _start(self, role: iam.Role, *families: str) -> None:
        """Tasks with the role of runs: runs, and their steps."""
        definitions = [self._arn("ecs", f"task-definition/{family}:*") for family in families]
        self._allow(role, ["ecs:RunTask"], definitions)
        tasks = self._arn("ecs", "task/mm-assets/*")
        self._allow(role, ["ecs:DescribeTasks", "ecs:StopTask", "ecs:TagResource"], [tasks])
        self._allow(role, ["ec2:DescribeNetworkInterfaces"], ["*"])
        self._pass(role, TASKS, self.run, self.execution)

    def _job_logs(self) -> list[str]:
        return [self._arn("logs", f"log-group:{group}:*") for group in JOB_LOGS]

    def _code(self) -> iam.Role:
        """The code server: sensors look for slides and write receipts of what they took in."""
        role = self._task("code")
        self._objects(role, READ, "slides/*", "store/*")
        self._objects(role, WRITE, "store/*")
        return role

    def _daemon(self) -> iam.Role:
        """The daemon: starts and watches runs."""
        role = self._task("daemon")
        self._start(role, "mm-assets-run")
        self._objects(role, (*READ, *WRITE), PRINTED)
        return role

    def _web(self) -> iam.Role:
        """The operators' web server: shows what was printed, ends runs."""
        role = self._task("web")
        self._objects(role, READ, PRINTED)
        tasks = self._arn("ecs", "task/mm-assets/*")
        self._allow(role, ["ecs:DescribeTasks", "ecs:StopTask"], [tasks])
        return role

    def _login_keys(self) -> iam.Role:
        """The function that fetches the balancer's public keys, and who may call it."""
        function = self._arn("lambda", f"function:{LOGIN_KEYS}")
        for role in (self.web, self.web_read_only):
            self._allow(role, ["lambda:InvokeFunction"], [function])
        role = self._role("login-keys", "lambda.amazonaws.com")
        group = self._arn("logs", f"log-group:{LOGIN_KEYS_LOG}:*")
        self._allow(role, ["logs:CreateLogStream", "logs:PutLogEvents"], [group])
        return role

    def _uploader(self) -> iam.Role:
        """Who brings slides: writes to the quarantine, and cannot read it back."""
        role = iam.Role(
            self,
            "uploader",
            role_name="mm-assets-uploader",
            assumed_by=iam.AccountPrincipal(self.stage.account).with_conditions(
                {"Bool": {"aws:MultiFactorAuthPresent": "true"}}
            ),
        )
        self._objects(role, WRITE, "quarantine/*")
        return role

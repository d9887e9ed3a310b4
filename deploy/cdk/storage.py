"""The key, the buckets and the image repositories of a stage."""

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct
from log_groups import kept_log
from settings import IMAGES, REGION, Stage

BUCKETS = ("quarantine", "slides", "store", "logs")
JOB_LOGS = ("/aws/sagemaker/ProcessingJobs", "/aws/sagemaker/TrainingJobs")


class Storage(Construct):
    """Everything that keeps bytes: private, encrypted by one key, versioned, TLS only.

    `quarantine` takes slides as hospitals send them, `slides` what has been de-identified, `store`
    artefacts, receipts and models, `logs` what processes print and who read what.
    """

    def __init__(self, scope: Construct, name: str, stage: Stage) -> None:
        super().__init__(scope, name)
        self.key = kms.Key(
            self,
            "Key",
            alias=f"mm-assets-{stage.name}",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.RETAIN,
        )
        self._let_logs_use_the_key(stage)
        accesses = self._bucket(stage, "logs", None)
        others = [bucket for bucket in BUCKETS if bucket != "logs"]
        self.buckets = {
            "logs": accesses,
            **{bucket: self._bucket(stage, bucket, accesses) for bucket in others},
        }
        for group in JOB_LOGS:
            self._log_of_jobs(group)
        self.repositories = {image: self._repository(image) for image in IMAGES}

    def _bucket(self, stage: Stage, name: str, logs: s3.IBucket | None) -> s3.Bucket:
        return s3.Bucket(
            self,
            name.capitalize(),
            bucket_name=f"mm-assets-{stage.name}-{stage.account}-{name}",
            # Access logs cannot be delivered to a bucket that a key of one's own encrypts.
            encryption=s3.BucketEncryption.KMS if logs else s3.BucketEncryption.S3_MANAGED,
            encryption_key=self.key if logs else None,
            bucket_key_enabled=bool(logs) or None,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            versioned=True,
            removal_policy=RemovalPolicy.RETAIN,
            server_access_logs_bucket=logs,
            server_access_logs_prefix=f"access/{name}/" if logs else None,
            lifecycle_rules=[
                s3.LifecycleRule(
                    abort_incomplete_multipart_upload_after=Duration.days(7),
                    noncurrent_version_expiration=Duration.days(90),
                )
            ],
        )

    def _log_of_jobs(self, group: str) -> None:
        """SageMaker would make it with the first job, without our key and for ever."""
        kept_log(self, group.rpartition("/")[2], group, self.key)

    def _repository(self, image: str) -> ecr.Repository:
        return ecr.Repository(
            self,
            f"Repository-{image}",
            repository_name=f"mm-assets/{image}",
            encryption=ecr.RepositoryEncryption.KMS,
            encryption_key=self.key,
            image_scan_on_push=True,
            image_tag_mutability=ecr.TagMutability.IMMUTABLE,
            removal_policy=RemovalPolicy.RETAIN,
        )

    def _let_logs_use_the_key(self, stage: Stage) -> None:
        groups = f"arn:aws:logs:{REGION}:{stage.account}:log-group:*"
        self.key.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal(f"logs.{REGION}.amazonaws.com")],
                actions=["kms:Encrypt", "kms:Decrypt", "kms:GenerateDataKey*", "kms:DescribeKey"],
                resources=["*"],
                conditions={"ArnLike": {"kms:EncryptionContext:aws:logs:arn": groups}},
            )
        )

"""What GitHub's workflows may do: with a token for one repository, without stored keys."""

from aws_cdk import Duration
from aws_cdk import aws_iam as iam
from constructs import Construct
from settings import REGION, Stage
from storage import Storage

HOST = "token.actions.githubusercontent.com"
# The roles that `cdk bootstrap` makes.
BOOTSTRAP = "cdk-hnb659fds"


class Delivery(Construct):
    """A role that pushes images and one that deploys.

    Images are built for `test` alone; what `prod` gets is the same digest, after somebody approved
    it in the workflow's environment `production`.
    """

    def __init__(self, scope: Construct, name: str, stage: Stage, storage: Storage) -> None:
        super().__init__(scope, name)
        self.stage = stage
        self.provider = iam.CfnOIDCProvider(
            self, "GitHub", url=f"https://{HOST}", client_id_list=["sts.amazonaws.com"]
        )
        who = "environment:production" if stage.production else "environment:test"
        self.push = self._role("github-push", who)
        images = [repository.repository_arn for repository in storage.repositories.values()]
        layers = ("InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload", "PutImage")
        layers += ("BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer")
        self._allow(self.push, [f"ecr:{verb}" for verb in (*layers, "DescribeImages")], images)
        self._allow(self.push, ["ecr:GetAuthorizationToken"], ["*"])
        self.deploy = self._role("github-deploy", who)
        bootstrap = [
            f"arn:aws:iam::{stage.account}:role/{BOOTSTRAP}-{role}-{stage.account}-{REGION}"
            for role in ("deploy-role", "file-publishing-role")
        ]
        self._allow(self.deploy, ["sts:AssumeRole"], bootstrap)
        if not stage.production:
            self._let_demo_run()
            # What was tried here is fetched by the job that promotes it.
            read = self._role("github-read", "environment:production")
            self._allow(read, ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], images)
            self._allow(read, ["ecr:GetAuthorizationToken"], ["*"])

    def _let_demo_run(self) -> None:
        """The task that checks a deployment on the synthetic cohort."""

        def arn(resource: str) -> str:
            return f"arn:aws:ecs:{REGION}:{self.stage.account}:{resource}"

        self._allow(self.deploy, ["ecs:RunTask"], [arn("task-definition/mm-assets-run:*")])
        self._allow(self.deploy, ["ecs:DescribeTasks"], [arn("task/mm-assets/*")])
        roles = [
            f"arn:aws:iam::{self.stage.account}:role/mm-assets-{r}" for r in ("run", "execution")
        ]
        to = {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}
        self._allow(self.deploy, ["iam:PassRole"], roles, to)

    def _role(self, name: str, subject: str) -> iam.Role:
        claims = {
            f"{HOST}:aud": "sts.amazonaws.com",
            f"{HOST}:sub": f"repo:{self.stage.repository}:{subject}",
        }
        return iam.Role(
            self,
            name,
            role_name=f"mm-assets-{name}",
            max_session_duration=Duration.hours(1),
            assumed_by=iam.WebIdentityPrincipal(self.provider.attr_arn, {"StringEquals": claims}),
        )

    def _allow(
        self,
        role: iam.Role,
        actions: list[str],
        resources: list[str],
        conditions: dict[str, dict[str, str]] | None = None,
    ) -> None:
        role.add_to_policy(
            iam.PolicyStatement(actions=actions, resources=resources, conditions=conditions)
        )

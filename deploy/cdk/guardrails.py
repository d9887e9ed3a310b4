"""What costs too much or stops working is told to a person."""

from aws_cdk import Duration
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct
from database import Database
from services import Services
from settings import Stage

SHARES = (50, 80, 100)


class Guardrails(Construct):
    """A budget, and alarms of services and databases."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        stage: Stage,
        key: kms.IKey,
        services: Services,
        databases: list[Database],
    ) -> None:
        super().__init__(scope, name)
        self.topic = sns.Topic(self, "Alarms", master_key=key, enforce_ssl=True)
        self.topic.add_subscription(subscriptions.EmailSubscription(stage.alarm_email))
        for service in ("cloudwatch", "budgets"):
            principal = iam.ServicePrincipal(f"{service}.amazonaws.com")
            self.topic.grant_publish(principal)
            key.grant(principal, "kms:Decrypt", "kms:GenerateDataKey*")
        self._budget(stage)
        for label, service in {
            "web": services.web,
            "web-read-only": services.web_read_only,
            "daemon": services.daemon,
            "code": services.code,
            "mlflow": services.mlflow,
        }.items():
            self._alarm(
                f"{label}-memory", service.metric_memory_utilization(), 90, "is short of memory"
            )
            self._alarm(f"{label}-tasks", _tasks(service), 1, "does not run", True)
        for database in databases:
            server = database.instance
            self._alarm(f"{database.name}-cpu", server.metric_cpu_utilization(), 90, "is busy")
            self._alarm(
                f"{database.name}-disk",
                server.metric_free_storage_space(),
                5 * 2**30,
                "fills",
                True,
            )

    def _budget(self, stage: Stage) -> None:
        hears = [{"subscriptionType": "EMAIL", "address": stage.alarm_email}]
        budgets.CfnBudget(
            self,
            "Budget",
            budget=budgets.CfnBudget.BudgetDataProperty(
                budget_type="COST",
                time_unit="MONTHLY",
                budget_limit={"amount": stage.monthly_dollars, "unit": "USD"},
            ),
            notifications_with_subscribers=[
                {
                    "notification": {
                        "notificationType": "ACTUAL",
                        "comparisonOperator": "GREATER_THAN",
                        "threshold": share,
                    },
                    "subscribers": hears,
                }
                for share in SHARES
            ],
        )

    def _alarm(
        self, name: str, metric: cloudwatch.Metric, limit: float, what: str, below: bool = False
    ) -> None:
        operators = cloudwatch.ComparisonOperator
        alarm = cloudwatch.Alarm(
            self,
            name,
            alarm_description=f"{name.rpartition('-')[0]} {what}",
            metric=metric.with_(period=Duration.minutes(5)),
            threshold=limit,
            evaluation_periods=3,
            comparison_operator=operators.LESS_THAN_THRESHOLD
            if below
            else operators.GREATER_THAN_THRESHOLD,
            treat_missing_data=cloudwatch.TreatMissingData.BREACHING,
        )
        alarm.add_alarm_action(actions.SnsAction(self.topic))


def _tasks(service: ecs.FargateService) -> cloudwatch.Metric:
    """The fewest tasks there were: one that is replaced again and again is noticed too."""
    return cloudwatch.Metric(
        namespace="ECS/ContainerInsights",
        metric_name="RunningTaskCount",
        statistic="Minimum",
        dimensions_map={
            "ClusterName": service.cluster.cluster_name,
            "ServiceName": service.service_name,
        },
    )

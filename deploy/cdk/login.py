"""A login in front of every web UI.

The load balancer logs people in at the identity provider and lets nothing else through. Operators'
pages and viewers' pages are two hosts with a client each at the provider, which says who may use
which: its claims are verified by the balancer itself. (Verifying the balancer's own token again in
the services needs its public key, from an address on the internet, which they cannot reach; they
accept connections from the balancer's security group alone.)
"""

from aws_cdk import Duration, SecretValue
from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_wafv2 as waf
from constructs import Construct
from network import Network
from services import Services
from settings import Stage
from storage import Storage

SESSION = Duration.hours(9)


class Login(Construct):
    """The load balancer: TLS, one rule a host, 403 for all else."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        stage: Stage,
        network: Network,
        storage: Storage,
        services: Services,
    ) -> None:
        super().__init__(scope, name)
        self.stage, self.network = stage, network
        balancer = elb.ApplicationLoadBalancer(
            self,
            "Balancer",
            vpc=network.vpc,
            internet_facing=True,
            security_group=network.balancer,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC),
            drop_invalid_header_fields=True,
            deletion_protection=True,
            # A websocket of the web UI may be silent for a while.
            idle_timeout=Duration.minutes(10),
        )
        balancer.log_access_logs(storage.buckets["logs"], "balancer")
        certificate = acm.Certificate.from_certificate_arn(self, "Certificate", stage.certificate)
        self.listener = balancer.add_listener(
            "Listener",
            port=443,
            open=False,
            certificates=[certificate],
            ssl_policy=elb.SslPolicy.TLS13_RES,
            default_action=elb.ListenerAction.fixed_response(403),
        )
        self._host(1, "ui", "operators", services.web, 3000, "/server_info")
        self._host(2, "models", "operators", services.mlflow, 5000, "/health")
        self._host(3, "view", "viewers", services.web_read_only, 3000, "/server_info")
        self._firewall(balancer)

    def _host(
        self,
        priority: int,
        host: str,
        group: str,
        service: ecs.FargateService,
        port: int,
        path: str,
    ) -> None:
        target = elb.ApplicationTargetGroup(
            self,
            f"{host}-target",
            vpc=self.network.vpc,
            port=port,
            protocol=elb.ApplicationProtocol.HTTP,
            targets=[
                service.load_balancer_target(
                    container_name=_container(service), container_port=port
                )
            ],
            health_check=elb.HealthCheck(path=path, interval=Duration.seconds(30)),
            deregistration_delay=Duration.seconds(30),
        )
        self.network.balancer.connections.allow_to(
            self.network.workers, ec2.Port.tcp(port), f"{host} of the load balancer"
        )
        login = elb.ListenerAction.authenticate_oidc(
            authorization_endpoint=self.stage.authorization_endpoint,
            token_endpoint=self.stage.token_endpoint,
            user_info_endpoint=self.stage.userinfo_endpoint,
            issuer=self.stage.issuer,
            client_id=self._client(group, "client_id").unsafe_unwrap(),
            client_secret=self._client(group, "client_secret"),
            # Providers refuse scopes that they do not know.
            scope="openid email",
            session_cookie_name=f"mm-assets-{group}",
            session_timeout=SESSION,
            on_unauthenticated_request=elb.UnauthenticatedAction.AUTHENTICATE,
            allow_https_outbound=False,
            next=elb.ListenerAction.forward([target]),
        )
        self.listener.add_action(
            host,
            priority=priority,
            conditions=[elb.ListenerCondition.host_headers([f"{host}.{self.stage.domain}"])],
            action=login,
        )

    def _client(self, group: str, part: str) -> SecretValue:
        """Looked up when the template changes: a new secret needs a new label."""
        return SecretValue.secrets_manager(
            f"mm-assets/oidc-{group}", json_field=part, version_stage=self.stage.client_version
        )

    def _firewall(self, balancer: elb.ApplicationLoadBalancer) -> None:
        """AWS's rules against common attacks, and a limit of requests an address."""
        shown = {"cloud_watch_metrics_enabled": True, "sampled_requests_enabled": True}

        def rule(
            priority: int, name: str, statement: dict[str, object], key: str
        ) -> dict[str, object]:
            return {
                "name": name,
                "priority": priority,
                key: {"block" if key == "action" else "none": {}},
                "statement": statement,
                "visibilityConfig": {
                    "cloudWatchMetricsEnabled": True,
                    "sampledRequestsEnabled": True,
                    "metricName": name,
                },
            }

        managed = {"vendorName": "AWS", "name": "AWSManagedRulesKnownBadInputsRuleSet"}
        limit = {"limit": 10_000, "aggregateKeyType": "IP"}
        acl = waf.CfnWebACL(
            self,
            "Firewall",
            scope="REGIONAL",
            default_action=waf.CfnWebACL.DefaultActionProperty(allow={}),
            visibility_config=waf.CfnWebACL.VisibilityConfigProperty(
                metric_name="mm-assets", **shown
            ),
            rules=[
                rule(1, "bad-inputs", {"managedRuleGroupStatement": managed}, "overrideAction"),
                rule(2, "too-many", {"rateBasedStatement": limit}, "action"),
            ],
        )
        waf.CfnWebACLAssociation(
            self,
            "Firewalled",
            resource_arn=balancer.load_balancer_arn,
            web_acl_arn=acl.attr_arn,
        )


def _container(service: ecs.FargateService) -> str:
    container = service.task_definition.default_container
    assert container
    return container.container_name

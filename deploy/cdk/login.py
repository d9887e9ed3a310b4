"""A login in front of every web UI.

The load balancer logs people in at the identity provider and lets nothing else through. Operators'
pages and viewers' pages are two hosts with a client each at the provider, which says who may use
which, and a group each where the stage names them. Dagster's web servers verify the balancer's
signed word of every request (`mm_assets.shared_web`). Its public keys are on the internet, which
they cannot reach: a function outside the network fetches them, and does and knows nothing else.
"""

from pathlib import Path

from aws_cdk import Duration, SecretValue
from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_lambda as functions
from aws_cdk import aws_wafv2 as waf
from constructs import Construct
from log_groups import kept_log
from network import Network
from roles import LOGIN_KEYS, LOGIN_KEYS_LOG, Roles
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
        roles: Roles,
    ) -> None:
        super().__init__(scope, name)
        self.stage, self.network = stage, network
        self.balancer = elb.ApplicationLoadBalancer(
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
        self.balancer.log_access_logs(storage.buckets["logs"], "balancer")
        certificate = acm.Certificate.from_certificate_arn(self, "Certificate", stage.certificate)
        self.listener = self.balancer.add_listener(
            "Listener",
            port=443,
            open=False,
            certificates=[certificate],
            ssl_policy=elb.SslPolicy.TLS13_RES,
            default_action=elb.ListenerAction.fixed_response(403),
        )
        self._firewall()
        self._keys(storage, roles)

    def variables(self, group: str) -> dict[str, str]:
        """What a web server needs to verify that people of a group are logged in."""
        given = {
            "MM_LOGIN_BALANCER": self.balancer.load_balancer_arn,
            "MM_LOGIN_CLIENT": self._client(group, "client_id").unsafe_unwrap(),
            "MM_LOGIN_KEYS": LOGIN_KEYS,
        }
        named = self.stage.groups[group]
        return {**given, "MM_LOGIN_GROUP": named} if named else given

    def show(
        self,
        priority: int,
        host: str,
        group: str,
        service: ecs.FargateService,
        port: int,
        path: str,
    ) -> None:
        """A service under a host name, to people of a group."""
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
            scope=self.stage.scope,
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

    def _keys(self, storage: Storage, roles: Roles) -> None:
        group = kept_log(self, "KeysLog", LOGIN_KEYS_LOG, storage.key)
        functions.Function(
            self,
            "Keys",
            function_name=LOGIN_KEYS,
            description="Public keys with which the load balancer signs who is logged in.",
            runtime=functions.Runtime.PYTHON_3_14,
            handler="index.handler",
            code=functions.Code.from_inline(Path(__file__).with_name("login_keys.py").read_text()),
            timeout=Duration.seconds(10),
            role=roles.login_keys.without_policy_updates(),
            log_group=group,
        )

    def _firewall(self) -> None:
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
            resource_arn=self.balancer.load_balancer_arn,
            web_acl_arn=acl.attr_arn,
        )


def _container(service: ecs.FargateService) -> str:
    container = service.task_definition.default_container
    assert container
    return container.container_name

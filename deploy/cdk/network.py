"""A network without a way out: endpoints for AWS's services, the load balancer for people."""

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_kms as kms
from constructs import Construct
from log_groups import kept_log
from settings import S3_PREFIX_LIST, ZONES

SERVICES = {
    "Ec2": ec2.InterfaceVpcEndpointAwsService.EC2,
    "Ecr": ec2.InterfaceVpcEndpointAwsService.ECR,
    "EcrDocker": ec2.InterfaceVpcEndpointAwsService.ECR_DOCKER,
    "Ecs": ec2.InterfaceVpcEndpointAwsService.ECS,
    "EcsAgent": ec2.InterfaceVpcEndpointAwsService.ECS_AGENT,
    "EcsTelemetry": ec2.InterfaceVpcEndpointAwsService.ECS_TELEMETRY,
    "Kms": ec2.InterfaceVpcEndpointAwsService.KMS,
    "Lambda": ec2.InterfaceVpcEndpointAwsService.LAMBDA_,
    "Logs": ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS,
    "Monitoring": ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_MONITORING,
    "SageMaker": ec2.InterfaceVpcEndpointAwsService.SAGEMAKER_API,
    "Secrets": ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
    "Sts": ec2.InterfaceVpcEndpointAwsService.STS,
}


class Network(Construct):
    """Isolated subnets for all work, public ones for the load balancer alone."""

    def __init__(self, scope: Construct, name: str, key: kms.IKey) -> None:
        super().__init__(scope, name)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            availability_zones=list(ZONES),
            nat_gateways=0,
            restrict_default_security_group=False,
            subnet_configuration=[
                ec2.SubnetConfiguration(
                    name="login",
                    subnet_type=ec2.SubnetType.PUBLIC,
                    cidr_mask=26,
                    map_public_ip_on_launch=False,
                ),
                ec2.SubnetConfiguration(
                    name="work", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=20
                ),
            ],
        )
        group = kept_log(self, "FlowLog", "mm-assets/network", key)
        self.vpc.add_flow_log("Flow", destination=ec2.FlowLogDestination.to_cloud_watch_logs(group))
        self.work = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
        self.vpc.add_gateway_endpoint(
            "S3", service=ec2.GatewayVpcEndpointAwsService.S3, subnets=[self.work]
        )
        self.endpoints = self._group("Endpoints", "Reached by all work, reaches nothing.")
        self.workers = self._group("Workers", "Services, runs and jobs.")
        self.balancer = self._group("Balancer", "Reached by people, reaches the web UIs.")
        self.workers.connections.allow_to(self.endpoints, ec2.Port.tcp(443), "AWS's services")
        self.workers.connections.allow_internally(ec2.Port.tcp(4000), "Code server")
        self.workers.connections.allow_internally(ec2.Port.tcp(5000), "MLflow")
        self.workers.add_egress_rule(
            ec2.Peer.prefix_list(S3_PREFIX_LIST), ec2.Port.tcp(443), "S3 through its gateway"
        )
        self.balancer.add_ingress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "People")
        # The balancer itself asks the identity provider, which is outside.
        self.balancer.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "Identity provider")
        for service, endpoint in SERVICES.items():
            self.vpc.add_interface_endpoint(
                service,
                service=endpoint,
                subnets=self.work,
                security_groups=[self.endpoints],
                open=False,
            )

    def _group(self, name: str, purpose: str) -> ec2.SecurityGroup:
        return ec2.SecurityGroup(
            self, name, vpc=self.vpc, description=purpose, allow_all_outbound=False
        )

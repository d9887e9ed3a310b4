"""Machines with a GPU for steps that do not go to SageMaker: none as long as nobody asks."""

from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct
from network import Network
from services import GPU_CAPACITY
from settings import Stage

INSTANCE = "g5.2xlarge"
DISK = "/dev/xvda"


class GpuCapacity(Construct):
    """A capacity provider that starts machines for waiting tasks and ends idle ones."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        stage: Stage,
        network: Network,
        cluster: ecs.Cluster,
        key: kms.IKey,
    ) -> None:
        super().__init__(scope, name)
        _let_machines_have_disks(key, stage)
        role = iam.Role(
            self,
            "Machine",
            role_name="mm-assets-gpu-machine",
            assumed_by=iam.ServicePrincipal("ec2.amazonaws.com"),
        )
        template = ec2.LaunchTemplate(
            self,
            "Template",
            instance_type=ec2.InstanceType(INSTANCE),
            machine_image=ecs.EcsOptimizedImage.amazon_linux2023(ecs.AmiHardwareType.GPU),
            role=role,
            security_group=network.workers,
            require_imdsv2=True,
            http_put_response_hop_limit=1,
            block_devices=[
                ec2.BlockDevice(
                    device_name=DISK,
                    volume=ec2.BlockDeviceVolume.ebs(200, encrypted=True, kms_key=key),
                )
            ],
        )
        group = autoscaling.AutoScalingGroup(
            self,
            "Group",
            vpc=network.vpc,
            vpc_subnets=network.work,
            launch_template=template,
            min_capacity=0,
            max_capacity=8 if stage.production else 1,
            new_instances_protected_from_scale_in=True,
        )
        cluster.add_asg_capacity_provider(
            ecs.AsgCapacityProvider(
                self,
                "Provider",
                capacity_provider_name=GPU_CAPACITY,
                auto_scaling_group=group,
            )
        )


def _let_machines_have_disks(key: kms.IKey, stage: Stage) -> None:
    """Who starts machines makes their disks with our key, in the account's own role for that."""
    role = "aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
    use = ("Encrypt", "Decrypt", "ReEncrypt*", "GenerateDataKey*", "DescribeKey")
    here = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
    for actions, conditions in ((use, None), (("CreateGrant",), here)):
        key.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ArnPrincipal(f"arn:aws:iam::{stage.account}:role/{role}")],
                actions=[f"kms:{action}" for action in actions],
                resources=["*"],
                conditions=conditions,
            )
        )

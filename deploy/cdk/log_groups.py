"""Logs as all of them are kept: a year, under our key, and longer than what writes them."""

from aws_cdk import RemovalPolicy
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from constructs import Construct


def kept_log(scope: Construct, name: str, group: str, key: kms.IKey) -> logs.LogGroup:
    """The log group ``group``, as the construct ``name``."""
    return logs.LogGroup(
        scope,
        name,
        log_group_name=group,
        encryption_key=key,
        retention=logs.RetentionDays.ONE_YEAR,
        removal_policy=RemovalPolicy.RETAIN,
    )

"""No role can do more than its rows, nor less: by an evaluator of our own, and for S3 by moto's."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import boto3
import pytest
from botocore.exceptions import ClientError
from conftest import Synthesized
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count
from policies import Row, Statement, allowed, read_matrix, role_statements

REGION = "eu-west-2"


@pytest.fixture(scope="module")
def statements(synthesized: Synthesized) -> dict[str, list[Statement]]:
    """Role -> what its policies say."""
    return role_statements(synthesized.templates, synthesized.stage.account)


@pytest.fixture(scope="module")
def matrix(synthesized: Synthesized) -> list[Row]:
    """The stage's rows."""
    return read_matrix(synthesized.stage.account, synthesized.stage.name)


def test_every_row_holds(statements: dict[str, list[Statement]], matrix: list[Row]) -> None:
    wrong = [
        row
        for row in matrix
        if allowed(statements[row.role], *row.request) != (row.allowed == "yes")
    ]
    assert wrong == []
    assert sum(row.allowed == "no" for row in matrix) >= 30
    assert len(matrix) >= 60


def test_no_role_can_do_more(statements: dict[str, list[Statement]], matrix: list[Row]) -> None:
    assert surplus(statements, matrix) == set()


def test_a_wider_role_is_seen(statements: dict[str, list[Statement]], matrix: list[Row]) -> None:
    """The checks themselves, on faults that somebody might make."""
    every_slide = Statement("Allow", ("s3:GetObject",), ("arn:aws:s3:::*",), {})
    any_action = Statement("Allow", ("s3:*",), ("*",), {})
    for fault in (every_slide, any_action):
        wider = {**statements, "web": [*statements["web"], fault]}
        assert surplus(wider, matrix)
        denied = [r for r in matrix if r.role == "web" and r.allowed == "no"]
        assert any(allowed(wider["web"], *r.request) for r in denied)
    conditioned = [(r, s) for r, own in statements.items() for s in own if s.conditions]
    assert len(conditioned) >= 7
    for role, statement in conditioned:
        free = Statement(statement.effect, statement.actions, statement.resources, {})
        assert surplus({role: [free]}, matrix), (role, statement)


def surplus(statements: dict[str, list[Statement]], matrix: list[Row]) -> set[tuple[str, ...]]:
    """Permissions that no allowed row of the role stands for, letter by letter."""
    rows = {
        (row.role, row.action, row.resource, row.context) for row in matrix if row.allowed == "yes"
    }
    return {
        (role, action, resource, context)
        for role, own in statements.items()
        for statement in own
        if statement.effect == "Allow"
        for action in statement.actions
        for resource in statement.resources
        for context in statement.contexts
    } - rows


@contextmanager
def acting_as(statements: list[Statement], buckets: list[str]) -> Iterator[Any]:
    """An S3 client of a role with these policies, in an account where IAM is enforced."""
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    with mock.patch.dict(os.environ, keys), mock_aws():
        owner = boto3.client("s3", region_name=REGION)
        where: dict[str, Any] = {"LocationConstraint": REGION}
        for bucket in buckets:
            owner.create_bucket(Bucket=bucket, CreateBucketConfiguration=where)
            for key in (
                "x",
                "models/x",
                "compute_logs/x",
                "demo/x",
                "access/x",
                "cohorts/x",
                "weights/x",
            ):
                owner.put_object(Bucket=bucket, Key=key, Body=b"")
        iam = boto3.client("iam", region_name=REGION)
        role = iam.create_role(RoleName="role", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        for number, statement in enumerate(statements):
            iam.put_role_policy(
                RoleName="role", PolicyName=f"p{number}", PolicyDocument=_document(statement)
            )
        session = boto3.client("sts", region_name=REGION).assume_role(
            RoleArn=role, RoleSessionName="session"
        )["Credentials"]
        yield boto3.client(
            "s3",
            region_name=REGION,
            aws_access_key_id=session["AccessKeyId"],
            aws_secret_access_key=session["SecretAccessKey"],
            aws_session_token=session["SessionToken"],
        )


def _document(statement: Statement) -> str:
    body = {
        "Effect": statement.effect,
        "Action": list(statement.actions),
        "Resource": list(statement.resources),
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [body]})


REQUESTS: dict[str, Callable[[Any, str, str], Any]] = {
    "s3:GetObject": lambda s3, bucket, key: s3.get_object(Bucket=bucket, Key=key),
    "s3:PutObject": lambda s3, bucket, key: s3.put_object(Bucket=bucket, Key=key, Body=b""),
    "s3:DeleteObject": lambda s3, bucket, key: s3.delete_object(Bucket=bucket, Key=key),
    "s3:ListBucket": lambda s3, bucket, key: s3.list_objects_v2(Bucket=bucket),
}


def test_s3_rows_by_motos_iam(
    synthesized: Synthesized, statements: dict[str, list[Statement]], matrix: list[Row]
) -> None:
    """Rows with a condition are left out: moto does not look at conditions."""
    stage = synthesized.stage
    places = [f"mm-assets-{stage.name}-{stage.account}-{b}" for b in BUCKETS]
    tried = 0
    for role in {row.role for row in matrix if row.action in REQUESTS}:
        plain = [s for s in statements[role] if not s.conditions]
        rows = [r for r in matrix if r.role == role and r.action in REQUESTS and not r.context]
        with acting_as(plain, places) as s3:
            for row in rows:
                bucket, _, key = row.request[1].removeprefix("arn:aws:s3:::").partition("/")
                assert _permitted(REQUESTS[row.action], s3, bucket, key) == (
                    row.allowed == "yes"
                ), row
                tried += 1
    assert tried >= 40


BUCKETS = ("quarantine", "slides", "store", "logs")


@set_initial_no_auth_action_count(0)
def _permitted(request: Callable[[Any, str, str], Any], s3: Any, bucket: str, key: str) -> bool:
    try:
        request(s3, bucket, key)
    except ClientError as error:
        code = str(error.response["Error"]["Code"])
        if code not in ("NoSuchKey", "404", "AccessDenied", "403"):
            raise
        return code in ("NoSuchKey", "404")
    return True

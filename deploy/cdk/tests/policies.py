"""What roles may do, read from synthesized templates: an evaluator of IAM's identity policies."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

REGION = "eu-west-2"
TABLE = Path(__file__).parents[1] / "matrix.csv"
_ANY_KEY = "key/KEY"


@dataclass(frozen=True)
class Row:
    """One line of the matrix.

    Attributes
    ----------
    action, resource, context
        What is allowed may hold `*`, and a policy then has it letter by letter. The context is
        ``key=value`` of the request, and the condition of what is allowed, or nothing.
    """

    role: str
    action: str
    resource: str
    context: str
    allowed: str

    @property
    def request(self) -> tuple[str, str, dict[str, str]]:
        """One request of the kind: action, resource, context."""
        resource = self.resource if self.resource == "*" else self.resource.replace("*", "x")
        return self.action.replace("*", "x"), resource, self.keys

    @property
    def keys(self) -> dict[str, str]:
        """The request's context."""
        key, _, value = self.context.partition("=")
        return {key: value.replace("*", "x")} if key else {}


@dataclass(frozen=True)
class Statement:
    """One statement of a policy, with addresses filled in."""

    effect: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, list[str]]]

    @property
    def contexts(self) -> list[str]:
        """Its condition as rows of the matrix have it.

        Raises
        ------
        ValueError
            When there are several: a row has one.
        """
        tests = [one for group in self.conditions.values() for one in group.items()]
        if len(tests) > 1:
            raise ValueError(f"a row of the matrix cannot say {self.conditions}")
        return [f"{key}={value}" for key, values in tests for value in values] or [""]

    def matches(self, action: str, resource: str, keys: Mapping[str, str]) -> bool:
        """Whether it speaks of the request."""
        return (
            any(fnmatchcase(action.lower(), known.lower()) for known in self.actions)
            and any(fnmatchcase(resource, known) for known in self.resources)
            and all(
                any(_holds(operator, wanted, keys.get(key)) for wanted in values)
                for operator, tests in self.conditions.items()
                for key, values in tests.items()
            )
        )


def allowed(
    statements: list[Statement], action: str, resource: str, keys: Mapping[str, str]
) -> bool:
    """IAM's answer: a denial wins, and without a permission there is none."""
    effects = {s.effect for s in statements if s.matches(action, resource, keys)}
    return effects == {"Allow"}


def read_matrix(account: str, stage: str) -> list[Row]:
    """The matrix of a stage: rows of the other are left out."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    filled = ({k: v.format(account=account, stage=stage) for k, v in row.items()} for row in rows)
    return [Row(**row) for row in filled if row.pop("stage") in ("", stage)]


def role_statements(templates: list[dict[str, Any]], account: str) -> dict[str, list[Statement]]:
    """Role (without the prefix ``mm-assets-``) -> its statements.

    Raises
    ------
    ValueError
        For a policy of a kind that is not read here: nothing may be overlooked.
    """
    resources = {name: found for t in templates for name, found in t["Resources"].items()}
    roles = {
        name: found["Properties"].get("RoleName", name).removeprefix("mm-assets-")
        for name, found in resources.items()
        if found["Type"] == "AWS::IAM::Role"
    }
    made: dict[str, list[Statement]] = {role: [] for role in roles.values()}
    for name, found in resources.items():
        properties = found.get("Properties", {})
        if found["Type"] in ("AWS::IAM::ManagedPolicy", "AWS::IAM::UserPolicy"):
            raise ValueError(f"{name}: a {found['Type']} is not read")
        if found["Type"] == "AWS::IAM::Role" and properties.get("Policies"):
            raise ValueError(f"{name}: policies within the role are not read")
        if found["Type"] == "AWS::IAM::Policy":
            read = list(_statements(properties["PolicyDocument"], resources, account))
            for role in properties["Roles"]:
                made[roles[role["Ref"]]] += read
    return made


def _statements(
    document: dict[str, Any], resources: dict[str, Any], account: str
) -> Iterator[Statement]:
    for statement in document["Statement"]:
        if {"NotAction", "NotResource"} & set(statement):
            raise ValueError("NotAction and NotResource are not read")
        yield Statement(
            statement["Effect"],
            tuple(_list(statement["Action"])),
            tuple(_text(r, resources, account) for r in _list(statement["Resource"])),
            {
                operator: {
                    key: [_text(v, resources, account) for v in _list(values)]
                    for key, values in tests.items()
                }
                for operator, tests in statement.get("Condition", {}).items()
            },
        )


def _text(value: Any, resources: dict[str, Any], account: str) -> str:
    """A string with CloudFormation's functions computed."""
    if isinstance(value, str):
        return value
    ((function, given),) = value.items()
    if function == "Fn::Join":
        return given[0].join(_text(part, resources, account) for part in given[1])
    if function == "Ref" and given == "AWS::Partition":
        return "aws"
    if function == "Fn::ImportValue":
        _, _, name = given.partition("ExportsOutputFnGetAtt")
        owner = next(n for n in resources if name.startswith(n))
        return _arn(owner, resources[owner], account)
    if function == "Fn::GetAtt" and given[1] == "Arn":
        return _arn(given[0], resources[given[0]], account)
    raise ValueError(f"cannot compute {value}")


def _arn(name: str, resource: dict[str, Any], account: str) -> str:
    properties = resource["Properties"]
    match resource["Type"]:
        case "AWS::S3::Bucket":
            return f"arn:aws:s3:::{properties['BucketName']}"
        case "AWS::KMS::Key":
            return f"arn:aws:kms:{REGION}:{account}:{_ANY_KEY}"
        case "AWS::IAM::Role":
            return f"arn:aws:iam::{account}:role/{properties.get('RoleName', name)}"
        case "AWS::Logs::LogGroup":
            return f"arn:aws:logs:{REGION}:{account}:log-group:{properties['LogGroupName']}:*"
        case "AWS::ECR::Repository":
            return f"arn:aws:ecr:{REGION}:{account}:repository/{properties['RepositoryName']}"
        case "AWS::ECS::Cluster":
            return f"arn:aws:ecs:{REGION}:{account}:cluster/{properties['ClusterName']}"
        case kind:
            raise ValueError(f"{name}: no address is known of a {kind}")


def _holds(operator: str, wanted: str, given: str | None) -> bool:
    match operator:
        case "StringEquals" | "ArnEquals":
            return given == wanted
        case "StringLike" | "ArnLike":
            return given is not None and fnmatchcase(given, wanted)
        case _:
            raise ValueError(f"conditions by {operator} are not read")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]

"""What the templates say of keys, networks, logins and stages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import login_keys
import pytest
from app import build
from conftest import ACCOUNTS, Synthesized, stage_named, variables
from settings import stage_from_environment


def test_buckets_are_private_versioned_and_speak_tls_only(synthesized: Synthesized) -> None:
    buckets = synthesized.resources("AWS::S3::Bucket")
    assert {b["BucketName"].rpartition("-")[2] for b in buckets} == {
        *("quarantine", "slides", "store", "logs")
    }
    for bucket in buckets:
        assert all(bucket["PublicAccessBlockConfiguration"].values())
        assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
        assert bucket["BucketEncryption"]
    refusals = [
        statement
        for policy in synthesized.resources("AWS::S3::BucketPolicy")
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Deny" and "Bool" in statement["Condition"]
    ]
    assert len(refusals) == len(buckets)
    assert all(r["Condition"]["Bool"] == {"aws:SecureTransport": "false"} for r in refusals)


def test_logs_of_jobs_are_there_before_jobs(synthesized: Synthesized) -> None:
    groups = {g["LogGroupName"]: g for g in synthesized.resources("AWS::Logs::LogGroup")}
    assert {"/aws/sagemaker/ProcessingJobs", "/aws/sagemaker/TrainingJobs"} < set(groups)
    for group in groups.values():
        assert group["KmsKeyId"]
        assert group["RetentionInDays"] == 365


def test_nothing_but_the_balancer_reaches_the_internet(synthesized: Synthesized) -> None:
    assert synthesized.resources("AWS::EC2::NatGateway") == []
    public = [s for s in synthesized.resources("AWS::EC2::Subnet") if s["MapPublicIpOnLaunch"]]
    assert public == []
    outward = [
        group["GroupDescription"]
        for group in synthesized.resources("AWS::EC2::SecurityGroup")
        for rule in group.get("SecurityGroupEgress", [])
        if rule.get("CidrIp") == "0.0.0.0/0"
    ]
    assert outward == ["Reached by people, reaches the web UIs."]
    for service in synthesized.resources("AWS::ECS::Service"):
        network = service["NetworkConfiguration"]["AwsvpcConfiguration"]
        assert network["AssignPublicIp"] == "DISABLED"


def test_databases_are_pinned_to_the_minor_version(synthesized: Synthesized) -> None:
    databases = synthesized.resources("AWS::RDS::DBInstance")
    assert [d["DBName"] for d in databases] == ["dagster", "mlflow"]
    for database in databases:
        major, minor = database["EngineVersion"].split(".")
        assert (major, minor.isdigit()) == ("16", True)
        assert database["AutoMinorVersionUpgrade"] is False
        assert database["StorageEncrypted"]
        assert not database["PubliclyAccessible"]


def test_every_page_is_behind_a_login(synthesized: Synthesized) -> None:
    (listener,) = synthesized.resources("AWS::ElasticLoadBalancingV2::Listener")
    assert listener["Protocol"] == "HTTPS"
    assert listener["DefaultActions"][0]["FixedResponseConfig"]["StatusCode"] == "403"
    rules = synthesized.resources("AWS::ElasticLoadBalancingV2::ListenerRule")
    cookies = {}
    for rule in rules:
        first, second = sorted(rule["Actions"], key=lambda action: action["Order"])
        assert (first["Type"], second["Type"]) == ("authenticate-oidc", "forward")
        login = first["AuthenticateOidcConfig"]
        assert login["OnUnauthenticatedRequest"] == "authenticate"
        stage = synthesized.stage
        assert login["Issuer"] == stage.issuer
        assert login["AuthorizationEndpoint"] == stage.authorization_endpoint
        assert login["TokenEndpoint"] == stage.token_endpoint
        assert login["UserInfoEndpoint"] == stage.userinfo_endpoint
        # Without a change here CloudFormation would not look at a changed secret.
        for part in ("client_id", "client_secret"):
            resolved = login["".join(word.capitalize() for word in part.split("_"))]
            assert f":{part}:{stage.client_version}:" in resolved
        (host,) = rule["Conditions"][0]["HostHeaderConfig"]["Values"]
        cookies[host.partition(".")[0]] = login["SessionCookieName"]
    assert cookies == {
        "ui": "mm-assets-operators",
        "models": "mm-assets-operators",
        "view": "mm-assets-viewers",
    }
    read_only = containers(synthesized)["web-read-only"]
    assert "--read-only" in read_only["Command"]


def test_web_servers_verify_who_is_logged_in(synthesized: Synthesized) -> None:
    (balancer,) = [
        name
        for template in synthesized.templates
        for name, found in template["Resources"].items()
        if found["Type"] == "AWS::ElasticLoadBalancingV2::LoadBalancer"
    ]
    (function,) = synthesized.resources("AWS::Lambda::Function")
    assert function["Code"]["ZipFile"] == Path(login_keys.__file__).read_text()
    # Outside the network, which has no way to the keys.
    assert "VpcConfig" not in function
    for name, group in {"web": "operators", "web-read-only": "viewers"}.items():
        container = containers(synthesized)[name]
        assert container["Command"][:3] == ["python", "-m", "mm_assets.shared_web"]
        given = {v["Name"]: v["Value"] for v in container["Environment"]}
        assert given["MM_LOGIN_BALANCER"] == {"Ref": balancer}
        assert f"mm-assets/oidc-{group}:SecretString:client_id:" in given["MM_LOGIN_CLIENT"]
        assert given["MM_LOGIN_KEYS"] == function["FunctionName"]
        assert given.get("MM_LOGIN_GROUP", "") == synthesized.stage.groups[group]
    rules = synthesized.resources("AWS::ElasticLoadBalancingV2::ListenerRule")
    scopes = {r["Actions"][0]["AuthenticateOidcConfig"]["Scope"] for r in rules}
    assert scopes == {synthesized.stage.scope}


def test_the_balancer_may_write_its_logs(synthesized: Synthesized) -> None:
    (balancer,) = synthesized.resources("AWS::ElasticLoadBalancingV2::LoadBalancer")
    attributes = {a["Key"]: a["Value"] for a in balancer["LoadBalancerAttributes"]}
    assert attributes["access_logs.s3.enabled"] == "true"
    base, _ = synthesized.templates
    account, prefix = synthesized.stage.account, attributes["access_logs.s3.prefix"]
    (bucket,) = [
        name
        for name, found in base["Resources"].items()
        if found["Type"] == "AWS::S3::Bucket" and found["Properties"]["BucketName"].endswith("logs")
    ]
    (writer,) = [
        statement
        for policy in synthesized.resources("AWS::S3::BucketPolicy")
        if policy["Bucket"] == {"Ref": bucket}
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Action"] == "s3:PutObject" and "AWS" in statement["Principal"]
    ]
    # The account from which AWS delivers these logs in the region.
    assert "652711504416" in json.dumps(writer["Principal"])
    assert f"/{prefix}/AWSLogs/{account}/*" in json.dumps(writer["Resource"])
    assert bucket in json.dumps(attributes["access_logs.s3.bucket"])


def test_containers_are_what_was_promoted(synthesized: Synthesized) -> None:
    for name, container in containers(synthesized).items():
        image = {"run": "cpu-worker", "run-gpu": "gpu-worker"}.get(name, "control-plane")
        assert synthesized.stage.digests[image] in json.dumps(container["Image"])
        assert container["ReadonlyRootFilesystem"]
        assert container["User"] == "10001"
        variables = {v["Name"]: v["Value"] for v in container["Environment"]}
        only = variables.get("MM_SYNTHETIC_ONLY")
        assert only == (None if synthesized.stage.production else "1")
        assert json.dumps(variables["MM_COHORTS"]).endswith('/cohorts"]]}')
        assert not any("PASSWORD" in variable for variable in variables)


def test_mlflow_answers_to_its_names_and_links_lead_to_pages(synthesized: Synthesized) -> None:
    pages = {
        rule["Conditions"][0]["HostHeaderConfig"]["Values"][0]
        for rule in synthesized.resources("AWS::ElasticLoadBalancingV2::ListenerRule")
    }
    for name, container in containers(synthesized).items():
        variables = {v["Name"]: v["Value"] for v in container["Environment"]}
        hosts = variables["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
        assert variables["MLFLOW_TRACKING_URI"].removeprefix("http://") in hosts, name
        models = variables["MM_MLFLOW_URL"]
        assert models.removeprefix("https://") in hosts
        assert variables["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == models
        links = {models, variables["MM_DAGSTER_URL"]}
        assert {link.removeprefix("https://") for link in links} < pages


def test_steps_can_have_a_gpu(synthesized: Synthesized) -> None:
    container = containers(synthesized)["run-gpu"]
    assert container["Name"] == "run"
    assert container["ResourceRequirements"] == [{"Type": "GPU", "Value": "1"}]
    (capacity,) = synthesized.resources("AWS::ECS::CapacityProvider")
    named = {
        v["Name"]: v["Value"] for c in containers(synthesized).values() for v in c["Environment"]
    }
    assert named["MM_GPU_CAPACITY_PROVIDER"] == capacity["Name"]
    assert named["MM_GPU_TASK_DEFINITION"] == "mm-assets-run-gpu"
    (key,) = synthesized.resources("AWS::KMS::Key")
    grants = [
        (statement["Action"], statement.get("Condition"))
        for statement in key["KeyPolicy"]["Statement"]
        if "AWSServiceRoleForAutoScaling" in json.dumps(statement["Principal"])
    ]
    assert ("kms:CreateGrant", {"Bool": {"kms:GrantIsForAWSResource": "true"}}) in grants
    assert any("kms:GenerateDataKey*" in actions for actions, _ in grants)


def test_what_stops_working_is_replaced_and_told(synthesized: Synthesized) -> None:
    services = synthesized.resources("AWS::ECS::Service")
    checked = {name for name, c in containers(synthesized).items() if "HealthCheck" in c}
    assert checked == {"web", "web-read-only", "daemon", "code", "mlflow"}
    assert len(services) == len(checked)
    alarms = [
        alarm
        for alarm in synthesized.resources("AWS::CloudWatch::Alarm")
        if alarm["MetricName"] == "RunningTaskCount"
    ]
    assert {a["AlarmDescription"].removesuffix(" does not run") for a in alarms} == checked
    assert len({json.dumps(a["Dimensions"]) for a in alarms}) == len(services)
    for alarm in alarms:
        assert (alarm["Statistic"], alarm["ComparisonOperator"]) == (
            *("Minimum", "LessThanThreshold"),
        )
        assert alarm["AlarmActions"]


def test_tasks_find_what_they_need_in_their_image(synthesized: Synthesized) -> None:
    for name, container in containers(synthesized).items():
        image = next(i for i, d in synthesized.stage.digests.items() if d in str(container))
        said = instructions(image)
        # ECS would put it before every command.
        assert "ENTRYPOINT" not in said, name
        if "HealthCheck" in container:
            assert container["HealthCheck"]["Command"] == ["CMD", "healthy"]
            assert any("deploy/images/healthy" in copied for copied in said["COPY"])
        # Elsewhere what is mounted belongs to root.
        places = {mount["ContainerPath"] for mount in container["MountPoints"]}
        assert places
        assert places <= {place for volumes in said["VOLUME"] for place in json.loads(volumes)}


def instructions(image: str) -> dict[str, list[str]]:
    """Instruction -> what it says, in an image and in those it is made from."""
    dockerfile = Path(__file__).parents[2] / "images" / "Dockerfile"
    said: dict[str, dict[str, list[str]]] = {}
    for line in dockerfile.read_text().replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            before, _, name = rest.split()
            said[name] = {key: [*lines] for key, lines in said.get(before, {}).items()}
        elif said and word.isupper():
            said[name].setdefault(word, []).append(rest)
    return said[image]


def test_github_may_act_for_one_environment(synthesized: Synthesized) -> None:
    subjects = [
        condition["token.actions.githubusercontent.com:sub"]
        for role in synthesized.resources("AWS::IAM::Role")
        for statement in role["AssumeRolePolicyDocument"]["Statement"]
        if statement["Action"] == "sts:AssumeRoleWithWebIdentity"
        for condition in [statement["Condition"]["StringEquals"]]
    ]
    expected = (
        ["production"] * 2 if synthesized.stage.production else ["test", "test", "production"]
    )
    assert subjects == [f"repo:example/mm_assets:environment:{name}" for name in expected]


def test_no_stage_knows_the_other(synthesized: Synthesized) -> None:
    others = set(ACCOUNTS.values()) - {synthesized.stage.account}
    for name, content in files(synthesized.folder):
        text = content.decode(errors="ignore")
        assert not any(account in text for account in others), name
        assert "dummy1" not in text, name
    manifest = json.loads((synthesized.folder / "manifest.json").read_text())
    assert "missing" not in manifest


def test_a_second_synthesis_gives_the_same_bytes(synthesized: Synthesized, tmp_path: Path) -> None:
    build(synthesized.stage, str(tmp_path)).synth()
    assert dict(files(tmp_path)) == dict(files(synthesized.folder))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STAGE", "live"),
        ("ACCOUNT", "12"),
        ("CPU_WORKER_DIGEST", "latest"),
        ("ISSUER", None),
        ("TOKEN_ENDPOINT", "/token"),
        ("OPERATORS", "mm-operators"),
    ],
)
def test_what_the_deployer_got_wrong_is_named(variable: str, value: str | None) -> None:
    stage = stage_named("prod")
    environment = variables(stage)
    assert stage_from_environment(environment) == stage
    if value is None:
        del environment[f"MM_DEPLOY_{variable}"]
    else:
        environment[f"MM_DEPLOY_{variable}"] = value
    with pytest.raises(ValueError, match=f"MM_DEPLOY_{variable}"):
        stage_from_environment(environment)


def containers(synthesized: Synthesized) -> dict[str, dict[str, Any]]:
    """Container by the name of its service."""
    return {
        definition["Family"].removeprefix("mm-assets-"): definition["ContainerDefinitions"][0]
        for definition in synthesized.resources("AWS::ECS::TaskDefinition")
    }


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Templates, manifests and assets; not the record of how the tree was made."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()

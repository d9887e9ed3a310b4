"""Dagster's web server as it is deployed: for people whom the load balancer logged in."""

import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from mm_assets.resources.login import WORD
from mm_assets_tests.balancer import BALANCER, Signer
from mm_assets_tests.daemon import free_port, wait_for

FUNCTION = "login-keys"
RELOAD = "mutation { reloadWorkspace { __typename } }"
NO_SUCH_RUN = """subscription { pipelineRunLogs(runId: "11111111-1111-1111-1111-111111111111") {
    ... on PipelineRunLogsSubscriptionFailure { message } } }"""


@pytest.fixture
def signer(s3_environment: str) -> Signer:
    """A balancer; the Lambda function of moto, which runs no code, answers with its key, once."""
    signer, session = Signer(), boto3.Session(region_name=os.environ["AWS_REGION"])
    _tell(f"{s3_environment}/moto-api/config", {"lambda": {"use_docker": False}})
    answer = {"results": [json.dumps(signer.pem)], "region": session.region_name}
    _tell(f"{s3_environment}/moto-api/static/lambda-simple/response", answer)
    trust = json.dumps({"Version": "2012-10-17", "Statement": []})
    role = session.client("iam").create_role(RoleName=FUNCTION, AssumeRolePolicyDocument=trust)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as code:
        code.writestr("index.py", "")
    session.client("lambda").create_function(
        FunctionName=FUNCTION,
        Runtime="python3.13",
        Role=role["Role"]["Arn"],
        Handler="index.handler",
        Code={"ZipFile": archive.getvalue()},
    )
    return signer


def _tell(address: str, said: object) -> None:
    request = urllib.request.Request(
        address, json.dumps(said).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10):
        pass


@pytest.fixture
def server(signer: Signer, tmp_path: Path) -> Iterator[str]:
    """Address of the viewers' web server, without the scheme."""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}")
    (tmp_path / "workspace.yaml").write_text("load_from: []")
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(tmp_path),
        "MM_LOGIN_BALANCER": BALANCER,
        "MM_LOGIN_CLIENT": "operators",
        "MM_LOGIN_GROUP": "groups=mm-operators",
        "MM_LOGIN_KEYS": FUNCTION,
    }
    port, log = free_port(), tmp_path / "log"
    command = [
        *(sys.executable, "-m", "mm_assets.shared_web", "--host", "127.0.0.1", "--read-only"),
        *("--port", str(port), "--workspace", str(tmp_path / "workspace.yaml")),
    ]
    with log.open("w") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink)
        try:
            address = f"127.0.0.1:{port}"
            wait_for("the server", lambda: _status(address, "/server_info") == 200, 120, log)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def _status(address: str, path: str, word: str | None = None) -> int:
    request = urllib.request.Request(
        f"http://{address}{path}", headers={WORD: word} if word else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _asked(address: str, query: str, word: str) -> str:
    body = json.dumps({"query": query}).encode()
    headers = {WORD: word, "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}/graphql", body, headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return str(reply.read().decode())


def test_people_who_are_logged_in_see_pages_and_what_they_are_told(
    server: str, signer: Signer
) -> None:
    word = signer.word()
    assert _status(server, "/runs", word) == 200
    assert "UnauthorizedError" in _asked(server, RELOAD, word)
    with connect(
        f"ws://{server}/graphql", additional_headers={WORD: word}, subprotocols=["graphql-ws"]
    ) as socket:
        socket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(socket.recv(30))["type"] == "connection_ack"
        socket.send(json.dumps({"type": "start", "id": "1", "payload": {"query": NO_SUCH_RUN}}))
        assert "Could not load run" in str(socket.recv(30))
    others = (None, signer.word(client="viewers"), Signer().word(), signer.word({"sub": "2"}))
    for other in others:
        assert _status(server, "/runs", other) == 403
        headers = {WORD: other} if other else {}
        with pytest.raises(InvalidStatus, match="403"):
            connect(f"ws://{server}/graphql", additional_headers=headers)


def test_a_server_without_a_login_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mm_assets.shared_web"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MM_LOGIN_BALANCER is not set" in done.stderr

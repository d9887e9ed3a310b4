"""Connections to S3, which try again: servers refuse, connections break off and stall.

Credentials and region come from AWS's usual places; ``AWS_ENDPOINT_URL_S3`` or
``AWS_ENDPOINT_URL`` point at another S3-speaking server.
"""

import os
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs

# With one request in eight going wrong, one in 10^9 fails for good.
ATTEMPTS = 10
SILENCE_SECONDS = 10.0
_CONNECTIONS = 64  # some slides at once, ten ranges of each


def s3_filesystem(bucket: str) -> pafs.S3FileSystem:
    """File system of a bucket."""
    options: dict[str, str] = {}
    endpoint = _endpoint()
    region = _region()
    if endpoint:
        parts = urlsplit(endpoint)
        options |= {"scheme": parts.scheme, "endpoint_override": parts.netloc}
    elif not region:
        region = pafs.resolve_s3_region(bucket)
    if region:
        options["region"] = region
    return pafs.S3FileSystem(
        # Delayed opening makes a small object one PUT, and lets none appear before it is complete.
        allow_delayed_open=True,
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=ATTEMPTS),
        connect_timeout=SILENCE_SECONDS,
        request_timeout=SILENCE_SECONDS,
        **options,
    )


def s3_client() -> Any:
    """Client of boto3, shared by threads."""
    return _made_client(_endpoint(), _region())


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _region() -> str | None:
    """Also from the variable that AWS's containers set and boto3 does not read."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


@cache
def _made_client(endpoint: str | None, region: str | None) -> Any:
    """One client for each server: making one takes longer than fetching a small slide."""
    import boto3
    from botocore.config import Config

    # A session of its own: boto3's default session must not be shared by threads.
    session = boto3.session.Session()
    config = Config(
        max_pool_connections=_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        connect_timeout=SILENCE_SECONDS,
        read_timeout=SILENCE_SECONDS,
    )
    return session.client("s3", region, endpoint_url=endpoint, config=config)

"""`python -m deploy.local.sagemaker`: the server, until interrupted."""

import argparse
import tempfile
from pathlib import Path
from threading import Event

from deploy.local.sagemaker.server import serving
from deploy.local.sagemaker.site import Site

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--s3", required=True, help="address of moto's server: S3, CloudWatch")
    parser.add_argument("--port", type=int, default=5600)
    parser.add_argument("--grace", type=float, default=120.0, help="seconds before SIGKILL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), options.s3, grace_seconds=options.grace)
        with serving(site, options.port) as service:
            print(f"export AWS_ENDPOINT_URL_SAGEMAKER={service.address}", flush=True)
            Event().wait()

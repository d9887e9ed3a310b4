"""The entry point of jobs in tests: behaves as its order says."""

import json
import os
import sys
import time
from pathlib import Path

import boto3
from dagster_pipes import PipesMappingParamsLoader, PipesS3MessageWriter, open_dagster_pipes

order = json.loads(Path(sys.argv[1]).read_text())
behaviour = order["behaviour"]
print(f"behaviour: {behaviour}", flush=True)
if behaviour == "silent":
    sys.exit()
with open_dagster_pipes(
    params_loader=PipesMappingParamsLoader(order["pipes"]),
    message_writer=PipesS3MessageWriter(boto3.client("s3"), interval=0),
) as pipes:
    if behaviour == "count":
        state = Path("/opt/ml/checkpoints/epoch")
        begin = int(state.read_text()) if state.exists() else 0
        pipes.report_custom_message(f"begun at {begin}")
        for epoch in range(begin, begin + 8):
            state.write_text(str(epoch + 1))
            time.sleep(1)
    else:
        pipes.report_custom_message("begun")
    if behaviour == "raise":
        raise ValueError("no such slide")
    if behaviour == "crash":
        time.sleep(2.5)  # for the first message to leave
        os._exit(3)
    if behaviour == "for ever":
        time.sleep(600)
    if behaviour == "some seconds":
        time.sleep(5)
    pipes.report_custom_message("done")

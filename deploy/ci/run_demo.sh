#!/usr/bin/env bash
# Fill the test stage with the synthetic cohort of PATIENTS patients and bring it to its report: tile
# embeddings by SageMaker, which tries its roles, network and image, all else in the task, which is
# cheaper for a cohort of this size. Afterwards the web UI shows it.
set -euo pipefail
buckets="s3://mm-assets-$MM_DEPLOY_STAGE-$MM_DEPLOY_ACCOUNT"

# Run `mm` with these arguments as a task of the stage, with the launcher named first.
mm() {
    local overrides task status code
    overrides=$(python3 -c 'import json, sys
environment = [{"name": "MM_LAUNCHER", "value": sys.argv[1]}]
run = {"name": "run", "environment": environment, "command": ["mm", *sys.argv[2:]]}
print(json.dumps({"containerOverrides": [run]}))' "$@")
    task=$(aws ecs run-task --cluster mm-assets --task-definition mm-assets-run \
        --launch-type FARGATE --overrides "$overrides" --query 'tasks[0].taskArn' --output text \
        --network-configuration "awsvpcConfiguration={subnets=[$SUBNETS],securityGroups=[$GROUP]}")
    until [ "${status:-}" = STOPPED ]; do
        sleep "${POLL_SECONDS:-15}"
        read -r status code < <(aws ecs describe-tasks --cluster mm-assets --tasks "$task" \
            --query 'tasks[0].[lastStatus, containers[0].exitCode]' --output text)
    done
    echo "mm ${*:2}: ended with $code"
    [ "$code" = 0 ]
}

mm local demo create --out /tmp/demo --patients "${PATIENTS:-120}" \
    --slides-to "$buckets-slides/synthetic" --to "$buckets-store/cohorts/synthetic"
mm local materialize synthetic --select slide --select tissue
mm sagemaker materialize synthetic --select tile_embeddings
mm local materialize synthetic
mm local reload

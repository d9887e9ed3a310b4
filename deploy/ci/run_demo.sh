#!/usr/bin/env bash
# Make the synthetic cohort in the test account and bring it to its report, as one task.
set -euo pipefail
command='{"containerOverrides": [{"name": "run", "command": ["mm", "demo", "run"],
    "environment": [{"name": "MM_LAUNCHER", "value": "local"}]}]}'
task=$(aws ecs run-task --cluster mm-assets --task-definition mm-assets-run --launch-type FARGATE \
    --network-configuration "awsvpcConfiguration={subnets=[$SUBNETS],securityGroups=[$GROUP]}" \
    --overrides "$command" --query 'tasks[0].taskArn' --output text)
for _ in $(seq 240); do
    read -r status code < <(aws ecs describe-tasks --cluster mm-assets --tasks "$task" \
        --query 'tasks[0].[lastStatus, containers[0].exitCode]' --output text)
    if [ "$status" = STOPPED ]; then
        echo "the demo ended with $code"
        exit "$([ "$code" = 0 ] && echo 0 || echo 1)"
    fi
    sleep 15
done
echo "the demo did not end within an hour"
exit 1

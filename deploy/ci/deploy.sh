#!/usr/bin/env bash
# Deploy the stage that the MM_DEPLOY_* variables describe. `deploy.sh base`, in an account's first
# days, makes only what images are pushed to and by whom, and needs no digests of them.
set -euo pipefail
stacks=--all
if [ "${1:-}" = base ]; then
    # Both stacks are described all the same: the base exports what the services use of it.
    stacks=mm-assets-base
    for image in CONTROL_PLANE CPU_WORKER GPU_WORKER; do
        export "MM_DEPLOY_${image}_DIGEST=sha256:$(printf '%064d' 0)"
    done
fi
make deploy/cdk/.venv/.ready
cd deploy/cdk
npx --yes aws-cdk@2.1148.0 deploy "$stacks" --require-approval never

#!/usr/bin/env bash
# Deploy the stage that the MM_DEPLOY_* variables describe.
set -euo pipefail
make deploy/cdk/.venv/.ready
cd deploy/cdk
npx --yes aws-cdk@2.1148.0 deploy --all --require-approval never

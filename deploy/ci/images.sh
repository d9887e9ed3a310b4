#!/usr/bin/env bash
# Images by digest: `build` makes and pushes them and tells their digests, `fetch` brings them from
# the account that tried them, `promote` pushes just those bytes to another.
set -euo pipefail
registry="$ACCOUNT.dkr.ecr.$AWS_REGION.amazonaws.com"
aws ecr get-login-password | skopeo login --username AWS --password-stdin "$registry"
for image in control-plane cpu-worker gpu-worker; do
    name="MM_DEPLOY_$(tr 'a-z-' 'A-Z_' <<<"$image")_DIGEST"
    case $1 in
    build)
        buildah build --format docker --build-arg "BASE=$BASE" --target "$image" --tag "$image" \
            --ignorefile deploy/images/Dockerfile.dockerignore --file deploy/images/Dockerfile .
        buildah push --digestfile "$image.digest" "$image" "docker://$registry/mm-assets/$image:$TAG"
        echo "$image=$(<"$image.digest")" >>"$GITHUB_OUTPUT"
        ;;
    fetch)
        skopeo copy --preserve-digests "docker://$registry/mm-assets/$image@${!name}" "dir:$RUNNER_TEMP/$image"
        ;;
    promote)
        skopeo copy --preserve-digests --digestfile "$image.digest" \
            "dir:$RUNNER_TEMP/$image" "docker://$registry/mm-assets/$image:$TAG"
        test "$(<"$image.digest")" = "${!name}"
        ;;
    esac
done

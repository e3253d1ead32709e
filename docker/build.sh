#!/usr/bin/env bash
# Builds the images data, train and airflow side by side: docker/build.sh [TAG]. Uses docker, podman or buildah, whichever is there
# first; BUILDER names one.
#
#   BASE        base image of all
#   TRAIN_BASE  base image of train, such as nvidia/cuda:12.8.1-runtime-ubuntu24.04
#   PREFIX      registry and folder before the names (prefrestore)
#   BUILD_FLAGS more options of the builder: secrets, volumes, network, isolation
set -euo pipefail
cd "$(dirname "$0")/.."

tag=${1:-$(git describe --always --dirty 2> /dev/null || echo local)}
base=${BASE:-docker.io/library/debian:bookworm-slim}
builder=${BUILDER:-}
for candidate in docker podman buildah; do
    if [ -z "$builder" ] && command -v "$candidate" > /dev/null; then builder=$candidate; fi
done
if [ -z "$builder" ]; then
    echo "build.sh: neither docker nor podman nor buildah is installed: install one" >&2
    exit 2
fi

builds=() images=()
trap 'kill "${builds[@]}" 2> /dev/null || true' EXIT

build() { # image, base, options
    local image="${PREFIX:-prefrestore}/$1:$tag"
    # BUILD_FLAGS is a list of words.
    # shellcheck disable=SC2086
    "$builder" build --file docker/Dockerfile --tag "$image" ${BUILD_FLAGS:-} \
        --build-arg "BASE=$2" --build-arg "VERSION=$tag" "${@:3}" . > >(awk -v "image=$1" '{print image ": " $0; fflush()}') 2>&1 &
    builds+=($!) images+=("$image")
}

build data "$base" --build-arg LOCK=data
build train "${TRAIN_BASE:-$base}" --build-arg LOCK=run
build airflow "$base" --target airflow
for number in "${builds[@]}"; do wait "$number"; done
for image in "${images[@]}"; do # a builder that was told to end says nothing
    if [ -z "$("$builder" images --quiet "$image" 2> /dev/null || true)" ]; then
        echo "build.sh: $image was not built: run this again" >&2
        exit 1
    fi
    echo "$image"
done

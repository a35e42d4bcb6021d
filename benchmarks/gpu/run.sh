#!/usr/bin/env bash
# Everything about the CUDA side that needs a GPU, in two calls that a borrowed machine has time for: see --help.
# The environment variable PYTHON names the interpreter (default: python3).
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -m benchmarks.gpu.cli "$@"

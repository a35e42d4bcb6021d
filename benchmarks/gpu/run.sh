#!/usr/bin/env bash
# Everything about the CUDA kernels that needs a GPU, in one command: build, case table, opcheck, sanitizer,
# benchmarks, report.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: benchmarks/gpu/run.sh [--out FOLDER] [--seconds S] [--only NAME[,NAME...]] [--batches N[,N...]]
                             [--lengths N[,N...]] [--quick] [--no-build] [--no-checks]

Builds dove_ext with its CUDA kernels, runs the case table and opcheck on the GPU, the table again under
compute-sanitizer (memcheck, racecheck), then the benchmarks, and writes one JSON record each and report.md.
A record is written anew after each of its rows.

  --out FOLDER   where records and logs go (default: benchmarks/results/gpu)
  --seconds S    time per row of a benchmark (default: 1)
  --only NAMES   of: attention, eos, pack, group_norm, generator
  --batches N    only these numbers of images, as in 1,8
  --lengths N    only these numbers of positions of attention, as in 512,576
  --quick        few rows, a check that everything runs
  --no-build     use the installed build
  --no-checks    benchmarks only

The environment variable PYTHON names the interpreter (default: python3).
TEXT
}

refuse() {
  echo "run.sh: $1" >&2
  exit 2
}

cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
out=benchmarks/results/gpu
seconds=1
only=attention,eos,pack,group_norm,generator
rows=()
lengths=()
build=yes
checks=yes
while [ $# -gt 0 ]; do
  case "$1" in
    --out | --seconds | --only | --batches | --lengths)
      [ $# -ge 2 ] || refuse "$1 needs a value; see --help"
      case "$1" in
        --out) out=$2 ;;
        --seconds) seconds=$2 ;;
        --only) only=$2 ;;
        --batches) rows+=(--batches "$2") ;;
        --lengths) lengths=(--lengths "$2") ;;
      esac
      shift
      ;;
    --quick) rows+=(--quick) ;;
    --no-build) build=no ;;
    --no-checks) checks=no ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) refuse "unknown option $1; see --help" ;;
  esac
  shift
done
[[ $seconds =~ ^[0-9]+([.][0-9]+)?$ ]] || refuse "--seconds must be a number, got $seconds"
for name in ${only//,/ }; do
  [ -f "benchmarks/gpu/$name.py" ] && [ "$name" != report ] && [ "$name" != device ] ||
    refuse "there is no benchmark $name; choose from attention, eos, pack, group_norm, generator"
done

command -v nvidia-smi >/dev/null || refuse "no GPU here (nvidia-smi was not found); run this on a machine with an NVIDIA GPU"
nvidia-smi -L 2>/dev/null | grep -q GPU || refuse "nvidia-smi lists no GPU; check the driver"

mkdir -p "$out"
if [ "$build" = yes ]; then
  "$python" -m pip install --quiet --no-build-isolation --no-deps --editable .
fi
"$python" -c "from benchmarks.gpu.device import require_gpu; require_gpu()"

status=0
if [ "$checks" = yes ]; then
  "$python" -m pytest tests/ops/test_device.py | tee "$out/table.log" || status=1
  if sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null); then
    for tool in memcheck racecheck; do
      # Rows whose vocabulary or image is large take hours under the sanitizer and add no code path.
      "$sanitizer" --tool "$tool" --target-processes all --error-exitcode 9 --log-file "$out/$tool.log" \
        "$python" -m pytest tests/ops/test_device.py -k "(forward or backward) and not paper and not huge and not many" ||
        status=1
      tail -n 1 "$out/$tool.log"
    done
  else
    echo "compute-sanitizer was not found: memcheck and racecheck did not run" | tee "$out/sanitizer-missing.log"
    status=1
  fi
fi
for name in ${only//,/ }; do
  more=()
  [ "$name" != attention ] || more=("${lengths[@]}")
  "$python" -m "benchmarks.gpu.$name" --seconds "$seconds" "${rows[@]}" "${more[@]}" --json "$out/$name.json" ||
    status=1
done
"$python" -m benchmarks.gpu.report "$out"
exit $status

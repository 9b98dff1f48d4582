#!/usr/bin/env bash
# What a GPU does, in ten minutes: tests/gpu/README.md says how to bring it there.
#
#     tests/gpu/measure.sh OUTPUT PROGRAM...
#
# Each program is timed alike; its name is that of its results. A step that fails or takes too long leaves its log and is
# not the end.
set -uo pipefail
output="$(realpath -m "$1")"
shift
limit="${LIMIT:-540}"
device="${DEVICE:-gpu}"
here="$(realpath "$(dirname "$0")")"
mkdir -p "$output"
started=$SECONDS

# A step: its name, the seconds that it may take, and the command; its output goes into files of this name.
step() {
    local name="$1" most="$2"
    shift 2
    local left=$((limit - (SECONDS - started)))
    if [ "$left" -lt 5 ]; then
        echo "$name: no time left" | tee -a "$output/summary.txt"
        return
    fi
    local before=$SECONDS
    timeout -k 5 "$((most < left ? most : left))" "$@" >"$output/$name.out" 2>"$output/$name.err"
    echo "$name: code $?, $((SECONDS - before)) s" | tee -a "$output/summary.txt"
}

{
    date
    uname -srm
    grep -m1 'model name' /proc/cpuinfo
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
    vulkaninfo --summary
} >"$output/machine.txt" 2>&1

for program in "$@"; do
    name="$(basename "$program")"
    program="$(realpath "$program")"
    # Nothing is known of this GPU yet.
    export XDG_CACHE_HOME="$output/$name-cache"
    step "$name-devices" 30 "$program" devices
    step "$name-first-picture" 120 "$program" generate class --fast --device "$device" -o "$output/$name.png"
    step "$name-second-start" 60 "$program" generate class --fast --device "$device" -o "$output/$name-2.png"
    for batch in 1 64; do
        step "$name-shipped-$batch" 60 "$program" bench forward generate --batch "$batch" --device "$device"
    done
    xl=(--random --hidden 1152 --depth 28 --heads 16 --tokens 256 --device "$device" --runs 15)
    for dtype in ${TYPES:-f16 f32}; do
        step "$name-xl-$dtype" 90 "$program" bench forward "${xl[@]}" --dtype "$dtype"
    done
    step "$name-train" 60 "$program" bench train --batch 64 --device "$device"
    step "$name-launches" 90 env PYROGRAPH="$program" "$here/launches.sh" generate class --class 1 --device "$device"
done
rm -rf "$output"/*-cache
grep -h wall_median "$output"/*.out >"$output/times.jsonl"
cat "$output/summary.txt"

#!/usr/bin/env bash
# Kernels that one sampling step starts on a GPU, by name: the difference of a run of 8 steps and one of 4, a quarter of it.
#
#     tests/gpu/launches.sh [--device gpu:0] generate class -m MODEL --class 1
#
# The program is `pyrograph` on the path, or what $PYROGRAPH names.
set -euo pipefail
program="$(realpath "$(command -v "${PYROGRAPH:-pyrograph}")")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# Paths among the arguments are relative to here.
arguments=()
for argument in "$@"; do
    if [ -e "$argument" ]; then argument="$(realpath "$argument")"; fi
    arguments+=("$argument")
done
cat >"$work/cubecl.toml" <<END
[profiling]
logger = { level = "minimal", file = "$work/launches.log" }
END
for steps in 4 8; do
    rm -f "$work/launches.log"
    (cd "$work" && "$program" "${arguments[@]}" --steps $steps --seed 1 --quiet -o picture.png)
    # Names end with a number that is another in each build.
    sed -E 's/^Executing //; s/_[0-9a-f]{8}$//; s/ \| .*//' "$work/launches.log" | sort | uniq -c >"$work/$steps"
done
awk '
    FNR == NR { few[$2] = $1; next }
    { n = ($1 - few[$2]) / 4; sum += n; if (n != 0) printf "%8.2f %s\n", n, $2 }
    END { printf "%8.2f in all\n", sum }
' "$work/4" "$work/8" | sort -rn

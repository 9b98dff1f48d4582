#!/usr/bin/env bash
# Trains the variants of a list with several seeds and measures what they make:
#   docs/experiments/ablation.sh LIST TABLE TRAIN MEASURE
# A line of LIST is `name|learning rate|setting|..`. TRAIN is the command of pyrograph that trains, with its options, and
# MEASURE are the options by which a model is compared. Every model is a line of TABLE, which is gone on with after an
# interruption.
# SEEDS is "0 1 2", COUNT the images made of each model, JOBS the runs side by side, WORK the folder of runs. With
# TRAJECTORIES, a folder of them, the models are students that are compared with these too.
set -euo pipefail
list=$1 table=$2 train=$3 measure=$4
run=${PYROGRAPH:-pyrograph} count=${COUNT:-5000} jobs=${JOBS:-1} work=${WORK:-runs/ablation}
export table train measure run count jobs work
mkdir -p "$work"
touch "$table"

one() {
    IFS='|' read -r -a line <<<"$1"
    seed=${line[0]} name=${line[1]} rate=${line[2]} settings=()
    grep -q "\"name\":\"$name\",\"seed\":$seed,\"rate\":$rate," "$table" && return
    for setting in "${line[@]:3}"; do
        settings+=(--set "$setting")
    done
    folder="$work/$name-$rate-$seed"
    common=(--threads "$((($(nproc) + jobs - 1) / jobs))" --device cpu -q)
    # Both are lists of words.
    # shellcheck disable=SC2086
    "$run" $train -o "$folder" --seed "$seed" --lr "$rate" "${settings[@]}" "${common[@]}" --resume
    # shellcheck disable=SC2086
    scores=$("$run" eval $measure -m "$folder/model" -n "$count" --cache "$work/features" --batch-size 50 \
        "${common[@]}")
    if [ -n "${TRAJECTORIES:-}" ]; then
        strays=$("$run" distill compare --trajectories "$TRAJECTORIES" -m "$folder/model" --json "${common[@]}")
        scores+=",\"deviation\":$strays"
    fi
    parameters=$("$run" inspect "$folder/model" --json | grep -o '"parameters":[0-9]*' | head -n 1)
    echo "{\"name\":\"$name\",\"seed\":$seed,\"rate\":$rate,$parameters,\"scores\":$scores}" >>"$table"
    rm -r "$folder/checkpoints"
}
export -f one

for seed in ${SEEDS:-0 1 2}; do
    grep -v '^#' "$list" | sed "s/^/$seed|/"
done | xargs -d '\n' -P "$jobs" -I{} bash -euo pipefail -c 'one "$@"' _ {}

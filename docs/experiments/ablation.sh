#!/usr/bin/env bash
# Trains the variants of the ablation with three seeds each and measures them:
#   docs/experiments/ablation.sh CIFAR10_TRAIN_FOLDER WORK_FOLDER [OPTIONS OF TRAIN]
# Can be stopped and started again; the table is WORK_FOLDER/ablation.jsonl. COUNT is the number of images made
# of each model. The rates of C and D, and of each modulation but scale-rotation-gate, are not tuned.
set -euo pipefail
data=$1 work=$2
shift 2
here=$(dirname "$0")
run=${PYROGRAPH:-pyrograph}
mkdir -p "$work"
touch "$work/ablation.jsonl"

modulation() {
    echo "model.modulation={ scale = $1, shift = $2, rotation = $3, gate = $4, gate_form = \"one\" }"
}
smooth='process.time="log_sigma"'
variants() {
    cat <<END
A|0.01|model.kind=ladder-a
B|0.003|model.kind=ladder-b
C|0.03|model.kind=ladder-c
D|0.03|model.kind=ladder-d
E|0.03|model.kind=ladder-e
dit|0.003|model.kind=dit
mp-scale-shift-gate|0.03|model.kind=mp-dit|$smooth|$(modulation true true false true)
mp-scale-rotation-gate|0.03|model.kind=mp-dit|$smooth|$(modulation true false true true)
mp-scale-gate|0.03|model.kind=mp-dit|$smooth|$(modulation true false false true)
mp-rotation-gate|0.03|model.kind=mp-dit|$smooth|$(modulation false false true true)
END
}

for seed in 0 1 2; do
    variants | while IFS='|' read -r name rate first second third; do
        grep -q "\"name\":\"$name\",\"seed\":$seed," "$work/ablation.jsonl" && continue
        settings=()
        for setting in "$first" "$second" "$third"; do
            [ -z "$setting" ] || settings+=(--set "$setting")
        done
        folder="$work/$name-$seed"
        "$run" train class --data "$data" --config "$here/cifar10.toml" -o "$folder" --seed "$seed" \
            --lr "$rate" "${settings[@]}" "$@" --resume -q </dev/null
        scores=$("$run" eval --reference "$data" -m "$folder/model" -n "${COUNT:-5000}" --steps 20 --cfg-scale 1 \
            --cache "$work/features" -q </dev/null)
        parameters=$("$run" inspect "$folder/model" --json </dev/null | grep -o '"parameters":[0-9]*' | head -n 1)
        echo "{\"name\":\"$name\",\"seed\":$seed,\"rate\":$rate,$parameters,\"scores\":$scores}" \
            >>"$work/ablation.jsonl"
        rm -r "$folder/checkpoints"
    done
done

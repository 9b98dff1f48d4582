#!/usr/bin/env bash
# Judges the model of texts and its students, from the folder that text.sh made:
#   docs/experiments/text_judged.sh FOLDER
# PYROGRAPH is the program, COUNT the pictures of each part (500), RECORDED the trajectories (16384), STEPS those of a student's training
# (4000), SEEDS of students ("0 1 2"), HEADS a folder as `heads captions` makes it (FOLDER/heads). Everything that is there is gone on
# with after an interruption: judged/*.json, a line of `eval text` each.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
run=$(realpath "$(command -v "${PYROGRAPH:-pyrograph}")") count=${COUNT:-500} heads=$(realpath "${HEADS:-$1/heads}")
cd "$1"
mkdir -p judged

# The model as it would ship, and every prompt of its pictures.
[ -d model ] || "$run" convert run/model -o model --dtype f16
cat emoji/train/metadata.jsonl "$heads/train/metadata.jsonl" | sed -n 's/.*"prompt": *"\([^"]*\)".*/\1/p' >judged/prompts.txt
[ -s judged/sheet.png ] || "$run" generate text --prompt-file "$here/prompts.txt" -m model --seed 2 --grid 8 -o judged/sheet.png

# Style, background, tone and concept of emoji; expression, pose, light and more of heads.
judge() {
    local name=$1 columns folder
    shift
    for part in emoji heads; do
        case $part in
        emoji) folder=emoji columns=style,background,tone,concept ;;
        heads) folder=$heads columns=expression,pose,light,gender,skin,hair,beard,background ;;
        esac
        [ -s "judged/$name-$part.json" ] && continue
        "$run" eval text --reference "$folder/train" --held-out "$folder/held_out" \
            --columns "$columns" --prompts prompt -n "$count" --seed 100000 --cache judged/features --json "$@" >judged/line
        mv judged/line "judged/$name-$part.json"
    done
}
judge model -m model
judge flexible -m model --compute 60%
judge fourth -m model --steps 4
judge fourth-ddim -m model --steps 4 --sampler ddim

# Students of four steps: ARD, and step distillation.
"$run" distill record -m model -o trajectories -n "${RECORDED:-16384}" --prompt-file judged/prompts.txt
for seed in ${SEEDS:-0 1 2}; do
    for history in all newest; do
        student=students/$history-$seed
        "$run" distill train --trajectories trajectories -m model -o "$student" --history "$history" --history-layers 2 \
            --steps "${STEPS:-4000}" --lr 0.001 --seed "$seed" --set precision=bf16 --set sample_every=0 --resume
        judge "$history-$seed" -m "$student/model"
    done
done

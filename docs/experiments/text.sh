#!/usr/bin/env bash
# The model of texts, from nothing to a run that goes on where it was interrupted:
#   docs/experiments/text.sh EMOJI.png EMOJI.jsonl MINILM FOLDER
# The first three are what emoji_texts.py and emoji_encoder.py read, whose Python is $PYTHON; PYROGRAPH and HEADS are the programs, PEOPLE
# how many heads are drawn, ENCODER the steps of the text encoder.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
run=$(realpath "$(command -v "${PYROGRAPH:-pyrograph}")") heads=$(realpath "$(command -v "${HEADS:-heads}")")
python=${PYTHON:-python3} sheet=$(realpath "$1") list=$(realpath "$2") minilm=$(realpath "$3")
mkdir -p "$4"
cd "$4"

# A folder is there when it is whole.
made() {
    local folder=$1
    shift
    [ -d "$folder" ] && return
    rm -rf making
    "$@"
    mv making "$folder"
}
made emoji "$python" "$here/emoji_texts.py" "$sheet" "$list" "$here/concepts.txt" making
made heads "$heads" captions making --identities "${PEOPLE:-4000}" --views 1
both() {
    mkdir making
    for part in emoji heads; do
        ln -s "../$part/train" "making/$part"
        sed "s|\"file_name\": *\"|&$part/|" "$part/train/metadata.jsonl"
    done >making/metadata.jsonl
}
made both both
made encoder "$python" "$here/emoji_encoder.py" "$minilm" both/metadata.jsonl making --steps "${ENCODER:-1000}"
"$run" train text --data both --text-encoder encoder --config "$here/text.toml" -o first --resume
[ -d finer ] || "$run" flexify first/model --native 4 -o finer
"$run" train text --data both --init finer --config "$here/text.toml" -o run --resume --steps 9000 \
    --set model.patch=4 --set 'model.flexible.patches=[8, 16]' \
    --set 'patches=[{ until = 9000, shares = [[4, 0.45], [8, 0.4], [16, 0.15]] }]' \
    --set 'learning_rate={ peak = 0.0005, warmup = 100, decay = { kind = "cosine" } }' \
    --set process.schedule.log_mean=-0.5 --set process.schedule.log_std=1.1 --set 'defaults.cfg_interval=[0.4, 50.0]'

#!/usr/bin/env bash
# One new concept from twenty pictures, as a LoRA of the model of texts:
#   docs/experiments/text_lora.sh EMOJI.png EMOJI.jsonl MODEL FOLDER
# CONCEPT is the name of what the model has never seen (crown); STEPS those of its training (400); PYROGRAPH and PYTHON are the programs.
# FOLDER/before.png and FOLDER/after.png show the same prompts and noise without and with it; in the last row nothing of it is asked for.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
run=$(realpath "$(command -v "${PYROGRAPH:-pyrograph}")") python=${PYTHON:-python3} concept=${CONCEPT:-crown}
sheet=$(realpath "$1") list=$(realpath "$2") model=$(realpath "$3")
mkdir -p "$4"
cd "$4"

if [ ! -d data ]; then
    rm -rf making
    echo "$concept" >concept.txt
    "$python" "$here/emoji_texts.py" "$sheet" "$list" concept.txt making
    head -n 20 making/train/metadata.jsonl >making/metadata.jsonl
    sed -n 's/.*"file_name": *"\([^"]*\)".*/\1/p' making/metadata.jsonl | while read -r picture; do
        mv "making/train/$picture" making/
    done
    rm -r making/train making/held_out
    mv making data
fi
for style in 3d flat noto blob; do
    for ground in white blue red yellow; do
        echo "$style emoji of a $concept on a $ground background"
    done
done >prompts.txt
printf '%s\n' "3d emoji of a red apple on a white background" "cat face, flat, on a blue background" \
    "noto emoji of a green heart on a black background" "owl, noto, blue background" >>prompts.txt

pictures() {
    "$run" generate text --prompt-file prompts.txt -m "$model" --seed 3 --grid 4 -o "$1.png" "${@:2}"
}
pictures before
"$run" train lora -m "$model" --data data -o lora --steps "${STEPS:-400}" --batch 16 --rank 8 --resume
pictures after --lora lora

#!/usr/bin/env bash
# Portraits of synthetic people, from nothing to tables of how good they are:
#   docs/experiments/portraits.sh FOLDER
# It goes on where it was interrupted; a table is FOLDER/tables/NAME.txt. PYROGRAPH and HEADS are the programs, PEOPLE those
# who are trained on, BASE, MATCHING, STEPS and FIT the steps of the model, of the branches that find matches, of all others and
# of a person; TESTED people are asked for, USERS with MegaPortrait, JOBS at a time.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
run=$(realpath "$(command -v "${PYROGRAPH:-pyrograph}")") heads=$(realpath "$(command -v "${HEADS:-heads}")")
people=${PEOPLE:-2500} base=${BASE:-6000} matching=${MATCHING:-200} steps=${STEPS:-10000} fit=${FIT:-200}
tested=${TESTED:-32} users=${USERS:-16} jobs=${JOBS:-1}
mkdir -p "$1"
cd "$1"
mkdir -p tables

if [ ! -d people ]; then
    "$heads" views views --identities "$people" --views 8
    mkdir -p all making
    for view in views/*.png; do
        person=making/$(basename "${view%-*}")
        mkdir -p "$person"
        ln -f "$view" all/
        ln -f "$view" "$person/"
    done
    mv making people
fi
[ -d pairs ] || "$heads" pairs pairs --people "$tested" --references 4 --photos 8 --pasted
[ -d users ] || "$heads" pairs users --people "$users" --references 4 --photos 8 --pasted
[ -d turned ] || "$heads" pairs turned --people "$tested" --references 4 --yaw 60
# A profile of nobody: one black pixel.
black=iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNgYGAAAAAEAAHI6uv5AAAAAElFTkSuQmCC
base64 -d >nobody.png <<<"$black"

# Trains into a folder, unless that is done.
trained() {
    local folder=$1
    shift
    [ -f "$folder/done" ] || "$run" train "$@" -o "$folder" --resume
    touch "$folder/done"
}
branches() {
    local folder=$1
    shift
    trained "$folder" control -m base --batch 16 --set weighting=velocity --set precision=bf16 "$@"
}
trained base class --data all --config "$here/portraits.toml" --steps "$base"
branches untaught --data people --steps 1 --lr 1e-9
branches matching --data people --steps "$matching" --lr 0.0005
branches fresh --data people --steps "$matching" --lr 0.0005 --set control.fresh=true
branches portrait --data people --matching matching --steps "$steps" --lr 0.0005
branches blind --data people --matching untaught --steps "$steps" --lr 0.0005
branches context --data people --in-context 16 --steps "$steps" --lr 0.0005
branches moved --data people --in-context 16 --matching matching --steps "$steps" --lr 0.0005
for kind in edges luminance tile; do
    branches "$kind" --data all --kind "$kind" --steps "$steps" --lr 0.0005
done

# A command for every pair of a folder, or for every person.
each() {
    python3 "$here/each_pair.py" --jobs "$jobs" "$@"
}
for found in untaught fresh matching; do
    [ -f "tables/matches-$found.txt" ] && continue
    each turned "$found.json" -- "$run" portrait matches --profile '{profile}' --reference '{truth}' -m "$found" \
        --base base --json -q
    "$heads" matches turned --output "$found.json" >"tables/matches-$found.txt"
done

# IC-Portrait: portraits NAME by branches, with further options; an option given twice is the last one's.
portraits() {
    local name=$1 by=$2 profile=$3
    shift 3
    [ -f "tables/$name.txt" ] && return
    each pairs "$name.png" -- "$run" generate portrait --profile "$profile" --reference '{reference}' -m "$by" \
        --base base --seed '{number}' -o '{output}' -q "$@"
    "$heads" score pairs --output "$name.png" >"tables/$name.txt"
}
own='{profile}'
portraits portrait portrait "$own"
portraits nobody portrait nobody.png
portraits somebody-else portrait '{other}'
portraits still portrait "$own" --no-warp
for share in 0 0.5 0.95 1; do
    portraits "hidden-$share" portrait "$own" --rho "$share"
done
portraits blind blind "$own"
portraits context context "$own"
portraits moved moved "$own"
for rival in reference profile naive tone light truth; do
    [ -f "tables/$rival.txt" ] || "$heads" score pairs --output "$rival.png" >"tables/$rival.txt"
done

# MegaPortrait: people learnt from photos, in folders by what they were learnt from.
fitted() {
    local folder=$1 photos=$2
    shift 2
    mkdir -p "$folder"
    [ -f "$folder/done" ] || each users "$folder.txt" --people -- "$run" portrait fit --photos "$photos" -m base \
        -o "$folder/{identity}.safetensors" --overwrite "$@"
    touch "$folder/done"
}
for count in 1 2 4; do
    for photos in users/photos/*; do
        few="few/$count/$(basename "$photos")"
        mkdir -p "$few"
        for number in $(seq 0 $((count - 1))); do
            ln -f "$photos/$number.png" "$few/"
        done
    done
    fitted "people-$count" "few/$count/{photos.name}" --steps "$fit"
done
fitted people-8 '{photos}' --steps "$fit"
fitted people-half '{photos}' --steps $((fit / 2))
fitted people-more '{photos}' --steps $((fit * 3 / 2))

staged() {
    local name=$1 who=$2
    shift 2
    [ -f "tables/$name.txt" ] && return
    each users "$name.png" -- "$run" generate portrait --adapter "$who/{identity}.safetensors" --base base \
        --reference '{reference}' --face-mask '{face}' --edges edges --luminance luminance --tile tile --seed '{number}' \
        -o '{output}' -q "$@"
    "$heads" score users --output "$name.png" >"tables/$name.txt"
}
alone=(--shading off --paste off --harmonization 0)
staged mega people-8
staged mega-strangers people-8 "${alone[@]}" --adapter-scale 0,0,0
for count in 1 2 4 8 half more; do
    staged "mega-identity-$count" "people-$count" "${alone[@]}"
done
for share in 0.25 0.5 1; do
    staged "mega-inner-$share" people-8 "${alone[@]}" --inner-edges "$share"
done
for shading in off tones analytic net; do
    staged "mega-shading-$shading" people-8 --shading "$shading" --harmonization 0
done
for strength in 0.15 0.45 0.6; do
    staged "mega-harmonization-$strength" people-8 --harmonization "$strength"
done
staged mega-unshaded people-8 --shading off
for rival in reference naive tone light truth; do
    [ -f "tables/mega-$rival.txt" ] || "$heads" score users --output "$rival.png" >"tables/mega-$rival.txt"
done

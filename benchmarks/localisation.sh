#!/usr/bin/env bash
# Localisation of MobileNetV2's maps on ImageNet validation images with true boxes: benchmarks/results/localisation.md.
# bash benchmarks/localisation.sh DATA RUN
set -euo pipefail
data=$1 run=$2 here=$(cd "$(dirname "$0")" && pwd)
metrics=(pointing-game pointing-game:tolerance=0 energy-pointing relevance-mass relevance-rank segmentation-ap box-accuracy)
xattn explain "$data/boxes" --labels-csv "$data/boxes.csv" --regions "$data/boxes.csv" --workers 0 \
    --model torchvision:mobilenet_v2 --weights "$data/weights/mobilenet_v2.pth" --device cpu --tune off --out "$run" \
    --method grad-cam --method activation-map --method uniform --method centre --method random "${metrics[@]/#/--metric=}"
xattn compare "$run" --against centre > "$here/results/localisation.md"

#!/usr/bin/env bash
# Localisation of MobileNetV2's maps on ImageNet validation images with true boxes: benchmarks/results/localisation.md.
# bash benchmarks/localisation.sh DATA RUN
# DATA holds boxes/*.jpg, images of ImageNet's validation set; boxes.csv, with columns image, label, x0, y0, x1, y1; and
# weights/mobilenet_v2.pth, torchvision's. Box accuracy is at the customary threshold of 0.2, not at one chosen on held-out pictures.
set -euo pipefail
data=$1 run=$2 here=$(cd "$(dirname "$0")" && pwd)
metrics=(pointing-game pointing-game:tolerance=0 energy-pointing relevance-mass relevance-rank segmentation-ap box-accuracy)
xattn explain "$data/boxes" --labels-csv "$data/boxes.csv" --regions "$data/boxes.csv" --workers 0 \
    --model torchvision:mobilenet_v2 --weights "$data/weights/mobilenet_v2.pth" --device cpu --tune off --out "$run" \
    --method grad-cam --method activation-map --method uniform --method centre --method random "${metrics[@]/#/--metric=}"
{
    printf '# Localisation of MobileNetV2 on images of ImageNet with true boxes\n\n'
    printf 'Made by `bash benchmarks/localisation.sh DATA RUN`. Box accuracy is at threshold 0.2, not at one chosen on held-out images.\n\n'
    xattn compare "$run" --against centre
} > "$here/results/localisation.md"

#!/usr/bin/env bash
# The tables and the figure in benchmarks/results/: real networks on real photographs. Cut off and started again, it goes on.
#   XATTN_DATA=path/to/data RUNS=runs/photographs benchmarks/photographs.sh
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${XATTN_DATA:-../shared/data}
RUNS=${RUNS:-runs/photographs}
RESULTS=benchmarks/results
mkdir -p "$RUNS" "$RESULTS"

all_metrics=(average-drop average-gain average-increase average-drop-deletion insertion deletion
    insertion-correlation deletion-correlation sparsity)
metrics=("${all_metrics[@]/#/--metric=}")
controls=(--method=random --method=centre --method=edges --method=uniform --method=fake-cam)
cams=(--method=activation-map --method=grad-cam --method=grad-cam++)
guided=(--method=guided-backprop --method=guided-grad-cam --method=guided-grad-cam++)

first() { find "$DATA/photos" -name '*.jpg' | sort | head -n "$1"; }

# 1. ImageNet MobileNetV2: gradient methods, controls, all metrics, 100 photographs.
mapfile -t photos < <(first 100)
xattn explain "${photos[@]}" --labels-csv "$DATA/photos.csv" --model torchvision:mobilenet_v2 --weights "$DATA/weights/mobilenet_v2.pth" \
    "${cams[@]}" "${guided[@]}" "${controls[@]}" "${metrics[@]}" --out "$RUNS/mobilenet_v2"
xattn compare "$RUNS/mobilenet_v2" --against random > "$RESULTS/mobilenet_v2-100-photographs.md"
xattn compare "$RUNS/mobilenet_v2" --against random --format csv > "$RESULTS/mobilenet_v2-100-photographs.csv"

# 1b. The start of insertion: how much of the edges' score is owed to a slight blur, 24 photographs.
mapfile -t photos < <(first 24)
xattn explain "${photos[@]}" --labels-csv "$DATA/photos.csv" --model torchvision:mobilenet_v2 --weights "$DATA/weights/mobilenet_v2.pth" \
    --method=grad-cam --method=guided-backprop --method=edges --method=random \
    --metric=insertion --metric=insertion:protocol=rise --metric=insertion:blur=51 --out "$RUNS/blur"
xattn compare "$RUNS/blur" --against edges > "$RESULTS/mobilenet_v2-24-photographs-blur.md"

# 2. ImageNet SqueezeNet: Score-CAM beside the gradient methods, 30 photographs.
mapfile -t photos < <(first 30)
xattn explain "${photos[@]}" --labels-csv "$DATA/photos.csv" --model torchvision:squeezenet1_0 --weights "$DATA/weights/squeezenet1_0.pth" \
    "${cams[@]}" --method=score-cam "${guided[@]}" "${controls[@]}" "${metrics[@]}" --save-maps --out "$RUNS/squeezenet1_0"
xattn compare "$RUNS/squeezenet1_0" --against random > "$RESULTS/squeezenet1_0-30-photographs.md"
xattn compare "$RUNS/squeezenet1_0" --against random --format csv > "$RESULTS/squeezenet1_0-30-photographs.csv"

# 3. One's own network and checkpoint: ResNet-20 on CIFAR-10.
{ echo image,label; for file in "$DATA"/cifar10/*.png; do name=$(basename "$file" .png); echo "$name.png,${name##*_}"; done; } \
    > "$RUNS/cifar10.csv"
xattn explain "$DATA/cifar10" --labels-csv "$RUNS/cifar10.csv" --model benchmarks/cifar_resnet.py:resnet20 \
    --weights "$DATA/weights/cifar10_resnet20.th" --input-size 32 --resize 32 \
    "${cams[@]}" --method=score-cam "${guided[@]}" "${controls[@]}" "${metrics[@]}" --out "$RUNS/resnet20"
xattn compare "$RUNS/resnet20" --against random > "$RESULTS/resnet20-20-cifar10.md"
xattn compare "$RUNS/resnet20" --against random --format csv > "$RESULTS/resnet20-20-cifar10.csv"

# 4. The figure: six of the photographs (CC BY 2.0) with their credits.
chosen=(014f0024918a7b6f.jpg 0af0a5dfee6b84ff.jpg 0c7ac4a8c9dfa802.jpg 0e0f1fd2ed183781.jpg 16bbe588e0ecc6ab.jpg 18d5f99fe237a306.jpg)
xattn figure "$RUNS/squeezenet1_0" --out "$RESULTS/grid.png" "${chosen[@]/#/--image=}" \
    --method activation-map --method grad-cam --method grad-cam++ --method score-cam --method guided-grad-cam --method edges
{ echo "Photographs in grid.png, top to bottom, CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/):"; echo
  python - "$DATA/photos.csv" "${chosen[@]}" <<'PY'
import csv
import sys

rows = {row["image"]: row for row in csv.DictReader(open(sys.argv[1], encoding="utf-8"))}
for name in sys.argv[2:]:
    print(f"- {name}: {rows[name]['name']}, by {rows[name]['author']}, {rows[name]['source_page']}")
PY
} > "$RESULTS/grid-credits.md"

#!/usr/bin/env bash
# Trained heads on real images: the tables trained-*.md in benchmarks/results/. Cut off and started again, it goes on.
#   XATTN_DATA=path/to/data RUNS=runs/trained benchmarks/trained_heads.sh
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${XATTN_DATA:-../shared/data}
RUNS=${RUNS:-runs/trained}
RESULTS=benchmarks/results
SHOWN=${SHOWN:-60}      # images of each set that are explained by the CAMs
SCORED=${SCORED:-6}     # and by Score-CAM
PER_CLASS=${PER_CLASS:-24}
mkdir -p "$RUNS"
weights=$DATA/weights/mobilenet_v2.pth
mobilenet=(--model torchvision:mobilenet_v2 --weights "$weights")

# Labels of imagenette/val by ImageNet index, and as names; every class alike often among the first images.
python - "$DATA" "$RUNS" "$PER_CLASS" "$SHOWN" "$SCORED" <<'PY'
import csv
import sys
from pathlib import Path

data, runs = Path(sys.argv[1]), Path(sys.argv[2])
per_class, shown, scored = (int(argument) for argument in sys.argv[3:])
index = {row["wnid"]: row["index"] for row in csv.DictReader(open(data / "imagenet_classes.csv", encoding="utf-8"))}
folders = sorted(folder for folder in (data / "imagenette" / "val").iterdir())
turns = sorted((turn, file) for folder in folders for turn, file in enumerate(sorted(folder.iterdir())))


def write(name, rows):
    with open(runs / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label"), *rows])


write("val-index.csv", [(f"{file.parent.name}/{file.name}", index[file.parent.name]) for _, file in turns])
write("val-name.csv", [(f"{file.parent.name}/{file.name}", file.parent.name) for _, file in turns])
explained = [(str(file.resolve()), index[file.parent.name]) for _, file in turns[:shown]]
write("val-shown.csv", explained)
write("val-scored.csv", explained[:scored])
train = [file.resolve() for folder in sorted((data / "imagenette" / "train").iterdir()) for file in sorted(folder.iterdir())[:per_class]]
write("train-few.csv", [(str(file), file.parent.name) for file in train])
PY

# 1. Cross-Attention Stream beside the frozen MobileNetV2, its classifier in place.
xattn train "${mobilenet[@]}" --head ca-stream --data "$DATA/imagenette/train" --classes wnid --out "$RUNS/ca-stream.safetensors"
both=("${mobilenet[@]}" --model "$RUNS/ca-stream.safetensors" --weights "$weights")

python benchmarks/accuracy.py "$DATA/imagenette/val" "$RUNS/val-index.csv" "torchvision:mobilenet_v2=$weights" \
    "$RUNS/ca-stream.safetensors=$weights" > "$RESULTS/trained-ca-stream-accuracy-imagenette.md"
python benchmarks/accuracy.py "$DATA/photos" "$DATA/photos.csv" "torchvision:mobilenet_v2=$weights" \
    "$RUNS/ca-stream.safetensors=$weights" > "$RESULTS/trained-ca-stream-accuracy-photos.md"

# 2. Table 1 of CA-Stream: head × attribution, on photographs that the stream never saw and on imagenette/val.
metrics=(--metric=average-drop --metric=average-gain --metric=average-increase --metric=insertion --metric=deletion)
cams=(--method=grad-cam --method=grad-cam++ --method=raw-attention)
find "$DATA/photos" -name '*.jpg' | sort > "$RUNS/photos-order.txt"
mapfile -t photos < <(head -n "$SHOWN" "$RUNS/photos-order.txt")
xattn explain "${photos[@]}" --labels-csv "$DATA/photos.csv" "${both[@]}" "${cams[@]}" "${metrics[@]}" --out "$RUNS/photos"
xattn compare "$RUNS/photos" > "$RESULTS/trained-ca-stream-photos.md"
xattn explain "${photos[@]}" --target predicted --labels-csv "$DATA/photos.csv" "${both[@]}" "${cams[@]}" "${metrics[@]}" --out "$RUNS/photos-predicted"
xattn compare "$RUNS/photos-predicted" > "$RESULTS/trained-ca-stream-photos-predicted.md"
xattn explain "$RUNS/val-shown.csv" "${both[@]}" "${cams[@]}" "${metrics[@]}" --out "$RUNS/imagenette"
xattn compare "$RUNS/imagenette" > "$RESULTS/trained-ca-stream-imagenette.md"
xattn explain "$RUNS/val-scored.csv" "${both[@]}" --method=score-cam "${metrics[@]}" --out "$RUNS/score-cam"
xattn compare "$RUNS/score-cam" > "$RESULTS/trained-ca-stream-score-cam.md"

# 3. BR-NPA and B-CNN on the ten classes with the network fine-tuned, at its own 7×7 and, taught by that, at 14×14. The BatchNorm of these
# weights was folded away: its statistics are those of no picture, and stay frozen.
tuned=()
for head in br-npa b-cnn; do
    xattn train "${mobilenet[@]}" --head "$head" --data "$RUNS/train-few.csv" --epochs 3 --freeze-statistics \
        --out "$RUNS/$head-7.safetensors"
    xattn train "${mobilenet[@]}" --head "$head" --data "$RUNS/train-few.csv" --epochs 3 --freeze-statistics \
        --high-res features.14 --teacher "$RUNS/$head-7.safetensors" --out "$RUNS/$head-14.safetensors"
    tuned+=(--model "$RUNS/$head-7.safetensors" --model "$RUNS/$head-14.safetensors")
done
xattn explain "$DATA/imagenette/val" --labels-csv "$RUNS/val-name.csv" "${tuned[@]}" --method=raw-attention --method=grad-cam \
    --metric=sparsity --metric=sparsity:definition=released --out "$RUNS/resolution"
xattn compare "$RUNS/resolution" > "$RESULTS/trained-br-npa-b-cnn-imagenette.md"

# 4. The figure: the six photographs of grid.png, with their credits there.
chosen=(014f0024918a7b6f.jpg 0af0a5dfee6b84ff.jpg 0c7ac4a8c9dfa802.jpg 0e0f1fd2ed183781.jpg 16bbe588e0ecc6ab.jpg 18d5f99fe237a306.jpg)
xattn figure "$RUNS/photos-predicted" --out "$RESULTS/trained-grid.png" "${chosen[@]/#/--image=}" --method grad-cam --method raw-attention

"""Values printed in the papers, for comparison: Gomez et al. 2021 (BR-NPA) and Torres et al. 2024 (CA-Stream)."""

from __future__ import annotations

# CA-Stream, Table 1, ResNet-50: (AD, AG, AI, I, D) by attribution and pooling, and accuracy by pooling.
CA_TABLE_1 = {
    ("grad-cam", "gap"): (13.04, 17.56, 44.47, 72.57, 13.24),
    ("grad-cam", "ca-stream"): (12.54, 22.67, 48.56, 75.53, 13.50),
    ("grad-cam++", "gap"): (13.79, 15.87, 42.08, 72.32, 13.33),
    ("grad-cam++", "ca-stream"): (13.99, 19.29, 44.60, 75.21, 13.78),
    ("score-cam", "gap"): (8.83, 17.97, 48.46, 71.99, 14.31),
    ("score-cam", "ca-stream"): (7.09, 23.65, 54.20, 74.91, 14.68),
}
CA_ACCURACY = {"gap": 74.55, "ca-stream": 74.70}

# CA-Stream, Table 3, ResNet-50 on VOC 2012: (AD, AG, AI, I, D) by attribution and pooling, and mAP by pooling.
CA_TABLE_3 = {
    ("grad-cam", "gap"): (12.61, 9.68, 27.88, 89.10, 59.39),
    ("grad-cam", "ca-stream"): (12.77, 15.46, 34.53, 88.53, 59.16),
    ("grad-cam++", "gap"): (12.25, 9.68, 27.62, 89.34, 54.23),
    ("grad-cam++", "ca-stream"): (12.28, 16.76, 34.87, 89.02, 53.34),
    ("score-cam", "gap"): (14.8, 6.76, 36.41, 71.10, 39.95),
    ("score-cam", "ca-stream"): (10.96, 21.35, 43.82, 89.21, 51.44),
}
CA_MAP = {"gap": 78.32, "ca-stream": 78.35}

# CA-Stream, Tables 4 to 6, ResNet-50: parameters in millions and accuracy.
CA_BLOCKS = {"ca-stream": (6.96, 74.70), "ca-stream:projection=true": (18.13, 74.41)}
CA_PLACEMENT = {0: (6.96, 74.70), 1: (6.95, 74.67), 2: (6.82, 74.67), 3: (6.29, 74.67), 4: (4.20, 74.63)}
# Table 6 also counts the network: 32.53 million with one query, 32.59 with a query per class; here only the stream, as in the others.
CA_QUERIES = {"ca-stream:per_class=true": (6.96 + 32.59 - 32.53, 74.68)}
# Their Grad-CAM rows (AD, AG, AI, I, D).
CA_DESIGN_GRAD_CAM = {
    "ca-stream": (12.54, 22.67, 48.56, 75.53, 13.50),
    "ca-stream:start=1": (12.54, 21.67, 48.58, 75.54, 13.50),
    "ca-stream:start=2": (12.69, 22.28, 47.89, 75.55, 13.40),
    "ca-stream:start=3": (12.77, 20.65, 47.14, 74.32, 13.37),
    "ca-stream:per_class=true": (12.53, 22.66, 48.58, 75.54, 13.50),
}

# BR-NPA, Table 4 (as 7): accuracy by selection and refinement.
SELECTION = {("random", False): 21.0, ("random", True): 53.0, ("active", False): 73.0, ("active", True): 81.0}
# Table 5: accuracy by the ranks that a classifier uses.
RANKS = {"1 2 3": 79.5, "1 2": 79.1, "2 3": 77.9, "1": 77.3, "2": 73.2, "3": 56.8}
# Table 6: accuracy and sparsity by head and by whether it is high-resolution and distilled.
RESOLUTION = {
    ("b-cnn", False): (82.9, 11.2),
    ("b-cnn", True): (84.6, 19.6),
    ("br-npa", False): (85.2, 7.46),
    ("br-npa", True): (85.5, 21.3),
}

# Table 9, Market-1501: rank-1.
RE_IDENTIFICATION = {"pooling": 94.8, "b-cnn": 78.4, "br-npa": 93.6, "br-npa, higher resolution": 88.2, "rga": 93.0}

# Table 8 (supplement), Cityscapes: mIoU of OCR by its region vectors.
SEGMENTATION = {"mean": 81.1, "representatives": 80.8}

# Shroff 2020, Tables 5.1 and 6.1, CUB: accuracy by local stream, and by the number of steps that are added without attention.
TWO_STREAMS = {"global alone": 77.8, "+ local, cnn": 77.79, "+ local, lstm": 78.20, "+ local, attention": 79.60}
TWO_STREAMS_SUMS = {1: 78.90, 2: 78.78, 3: 79.18, 4: 78.75, 5: 77.04, 6: 75.32, 7: 72.97, 8: 71.01, 9: 69.21, 10: 67.64}

# BR-NPA, Table 3, CIFAR-FS, 5-way 1-shot: accuracy by head and by whether it is high-resolution and distilled.
FEW_SHOT = {
    ("gap", False): (61.7, 0.9),
    ("b-cnn", False): (58.1, 1.1),
    ("br-npa", False): (69.9, 0.9),
    ("br-npa", True): (65.7, 0.7),
}

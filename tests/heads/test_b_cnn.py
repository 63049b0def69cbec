"""B-CNN against its definition."""

import torch
from torch.nn import functional

from xattn.heads import BCNN, BCNNHead


def test_each_map_weights_the_features_before_average_pooling() -> None:
    torch.manual_seed(0)
    head = BCNNHead(6, 4, BCNN(n=2)).double().eval()
    given = torch.randn(3, 6, 5, 5, dtype=torch.float64)
    block = head.block
    hidden = functional.relu(block.bn1(functional.conv2d(given, block.conv1.weight, padding=1)))
    hidden = functional.relu(block.bn2(functional.conv2d(hidden, block.conv2.weight, padding=1)) + given)
    maps = functional.relu(functional.conv2d(hidden, head.attention.weight))
    pooled = [(maps[:, k : k + 1] * given).mean(dim=(2, 3)) for k in range(2)]
    attended = head.attend(given, "here")
    assert torch.allclose(attended.attention["here"], maps)
    assert torch.allclose(attended.output, functional.linear(torch.cat(pooled, dim=1), head.linear.weight, head.linear.bias))
    assert torch.allclose(head.saliency(given, maps), maps.mean(dim=1) * given.norm(dim=1))


def test_it_has_a_block_a_1x1_convolution_without_bias_and_a_linear_layer() -> None:
    head = BCNNHead(64, 10)
    assert sum(p.numel() for p in head.parameters()) == 2 * (9 * 64 * 64 + 2 * 64) + 3 * 64 + 3 * 64 * 10 + 10


def test_half_precision_does_not_overflow_over_a_large_map() -> None:
    head = BCNNHead(8, 4).half().eval()
    with torch.no_grad():
        head.attention.weight.fill_(0.2)
    logits = head(torch.full((1, 8, 56, 56), 30.0, dtype=torch.float16))
    assert torch.isfinite(logits).all()

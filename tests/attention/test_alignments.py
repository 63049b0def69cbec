"""Alignment functions against their formulas, written out slowly, and against each other where one is a case of the other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from xattn.attention import align, alignments, attend, distribution
from xattn.attention.kernels import elu_features, log_random_features, orthogonal_gaussian
from xattn.attention.networks import DeepNetwork
from xattn.errors import InputError, NameUnknownError, SettingError

D_Q, D_K, N = 5, 3, 7
OF_ONE_WIDTH = {"similarity", "dot", "scaled-dot", "generalised-kernel", "generalised-kernel:random_features=16"}
SPECS = [*alignments.entries, "generalised-kernel:random_features=16", "deep:layers=3"]


def given(spec: str, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    d_k = D_Q if spec in OF_ONE_WIDTH else D_K
    query = torch.randn((batch, D_Q), generator=generator, dtype=torch.float64)
    return query, torch.randn((batch, N, d_k), generator=generator, dtype=torch.float64)


@torch.no_grad()
def built(spec: str, d_q: int = D_Q, d_k: int = D_K, n: int = N) -> nn.Module:
    """The alignment in float64; one with weights has none that is zero."""
    found = align(spec, d_q, d_q if spec in OF_ONE_WIDTH else d_k, n)
    if not isinstance(found, nn.Module):
        return found
    generator = torch.Generator().manual_seed(1)
    for parameter in found.double().parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return found


def slow(spec: str, module: nn.Module, q: Tensor, keys: Tensor) -> list[Tensor]:
    """Scores of one query, key by key, by the table's formulas."""
    tanh = torch.tanh
    formulas = {
        "similarity": lambda k: (q * k).sum() / (q.square().sum().sqrt() * k.square().sum().sqrt()),
        "dot": lambda k: (q * k).sum(),
        "scaled-dot": lambda k: (q * k).sum() / math.sqrt(len(k)),
        "general": lambda k: sum(q[i] * module.weight[i, j] * k[j] for i in range(D_Q) for j in range(D_K)),
        "biased-general": lambda k: (k * (module.linear.weight @ q + module.linear.bias)).sum(),
        "activated-general": lambda k: tanh(
            sum(q[i] * module.weight[i, j] * k[j] for i in range(D_Q) for j in range(D_K)) + module.bias[0]
        ),
        "generalised-kernel": lambda k: sum(
            (a + 1 if a > 0 else a.exp()) * (b + 1 if b > 0 else b.exp()) for a, b in zip(q, k, strict=True)
        ),
        "concat": lambda k: module.score.weight[0] @ tanh(module.linear.weight @ torch.cat([q, k]) + module.linear.bias),
        "additive": lambda k: module.score.weight[0] @ tanh(module.query.weight @ q + module.key.weight @ k + module.key.bias),
        "location-based": lambda k: None,
        "feature-based": lambda k: (
            module.score.weight[0] @ tanh(module.key.weight @ k + module.key.bias + module.mean.weight @ torch.stack([*keys]).mean(dim=0))
        ),
    }
    if spec == "location-based":
        return [row @ q for row in module.linear.weight]
    if spec.startswith("deep"):
        scores = []
        for k in keys:
            hidden = tanh(module.query.weight @ q + module.key.weight @ k + module.key.bias)
            for layer in module.hidden:
                hidden = tanh(layer.weight @ hidden + layer.bias)
            scores.append(module.score.weight[0] @ hidden)
        return scores
    return [formulas[spec](k) for k in keys]


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "random" not in spec])
def test_each_is_its_formula(spec: str) -> None:
    found, (query, keys) = built(spec), given(spec)
    scores = found(query, keys)
    assert scores.shape == (2, N)
    for number in range(2):
        assert torch.allclose(scores[number], torch.stack(slow(spec, found, query[number], keys[number])), atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_those_of_differences(spec: str) -> None:
    found, (query, keys) = built(spec), given(spec)
    weights = list(found.parameters()) if isinstance(found, nn.Module) else []
    assert torch.autograd.gradcheck(lambda q, k, *_: found(q, k), (query.requires_grad_(), keys.requires_grad_(), *weights), fast_mode=True)


@pytest.mark.parametrize("spec", SPECS)
def test_scores_do_not_depend_on_the_batch(spec: str) -> None:
    found, (query, keys) = built(spec), given(spec, batch=7)
    alone = torch.cat([found(query[number : number + 1], keys[number : number + 1]) for number in range(7)])
    assert torch.allclose(found(query, keys), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_half_precision_gives_finite_weights(spec: str) -> None:
    torch.manual_seed(0)
    found = align(spec, 2048, 2048, N)
    if isinstance(found, nn.Module):
        found.half()
    query, keys = torch.full((1, 2048), 30.0).half(), torch.full((1, N, 2048), 30.0).half()
    by = distribution("sum" if alignments.create(spec).metadata.kernel else "softmax")
    assert torch.allclose(by(found(query, keys)).sum(), torch.tensor(1.0))


def test_additive_is_concat_with_both_matrices_side_by_side() -> None:
    concat, additive, (query, keys) = built("concat"), built("additive"), given("concat")
    with torch.no_grad():
        concat.linear.weight.copy_(torch.cat([additive.query.weight, additive.key.weight], dim=1))
        concat.linear.bias.copy_(additive.key.bias)
        concat.score.weight.copy_(additive.score.weight)
    assert torch.allclose(concat(query, keys), additive(query, keys), atol=1e-12)


def test_deep_with_one_layer_is_additive() -> None:
    deep, additive, (query, keys) = built("deep:layers=1"), built("additive"), given("deep")
    deep.load_state_dict(additive.state_dict())
    assert torch.equal(deep(query, keys), additive(query, keys))
    assert sum(p.numel() for p in deep.parameters()) == 128 * (D_Q + D_K) + 128 + 128


def test_general_with_the_identity_is_the_dot_product() -> None:
    general, (query, keys) = built("general", D_Q, D_Q), given("dot")
    with torch.no_grad():
        general.weight.copy_(torch.eye(D_Q))
    assert torch.allclose(general(query, keys), align("dot")(query, keys), atol=1e-12)


def test_biased_general_without_a_bias_is_general_with_the_transposed_matrix() -> None:
    general, biased, (query, keys) = built("general"), built("biased-general"), given("general")
    with torch.no_grad():
        biased.linear.weight.copy_(general.weight.T)
        biased.linear.bias.zero_()
    assert torch.allclose(general(query, keys), biased(query, keys), atol=1e-12)


def test_activated_general_is_general_through_tanh() -> None:
    general, activated, (query, keys) = built("general"), built("activated-general"), given("general")
    with torch.no_grad():
        activated.weight.copy_(general.weight)
        activated.bias.zero_()
    assert torch.allclose(activated(query, keys), general(query, keys).tanh(), atol=1e-12)


def test_similarity_does_not_change_with_the_scale_and_is_the_cosine() -> None:
    query, keys = given("similarity")
    found = align("similarity")(query, keys)
    scales = torch.logspace(-6, 6, N, dtype=torch.float64)[:, None]
    assert torch.allclose(align("similarity")(1e-5 * query, scales * keys), found, atol=1e-12)
    assert torch.allclose(found, nn.functional.cosine_similarity(query[:, None], keys, dim=2), atol=1e-12)
    assert not align("similarity")(0 * query, keys).any()


def test_scaled_dot_with_a_softmax_is_torch_s_attention() -> None:
    query, keys = given("scaled-dot")
    values = torch.randn((2, N, 4), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = nn.functional.scaled_dot_product_attention(query[:, None], keys, values)[:, 0]
    assert torch.allclose(attend(query, keys, values, "scaled-dot", "softmax").output, expected, atol=1e-12)


def test_elu_features_are_torch_s_elu_plus_1_and_stay_positive_far_below_0() -> None:
    given_ = torch.linspace(-5, 5, 41)
    assert torch.allclose(elu_features(given_), nn.functional.elu(given_) + 1, atol=1e-6)
    assert elu_features(torch.tensor(-80.0)) > 0  # elu + 1 rounds to 0


def test_generalised_kernel_is_linear_attention_by_its_factors() -> None:
    """Σᵢ φ(q)ᵀφ(kᵢ) vᵢ / Σᵢ φ(q)ᵀφ(kᵢ) = φ(q)ᵀ(Σᵢ φ(kᵢ) vᵢᵀ) / φ(q)ᵀ Σᵢ φ(kᵢ)."""
    query, keys = given("generalised-kernel")
    values = torch.randn((2, N, 4), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    of_query, of_keys = nn.functional.elu(query) + 1, nn.functional.elu(keys) + 1
    summed = torch.einsum("bnd,bnv->bdv", of_keys, values)
    expected = torch.einsum("bd,bdv->bv", of_query, summed) / (of_query * of_keys.sum(dim=1)).sum(dim=1, keepdim=True)
    found = attend(query, keys, values, built("generalised-kernel"), "sum")
    assert torch.allclose(found.output, expected, atol=1e-12)


def test_random_features_approach_the_softmax_as_one_over_the_root_of_their_number() -> None:
    generator = torch.Generator().manual_seed(0)
    query = 0.5 * torch.randn((16, 8), generator=generator, dtype=torch.float64)
    keys = 0.5 * torch.randn((16, N, 8), generator=generator, dtype=torch.float64)
    exact = distribution("softmax")(align("scaled-dot")(query, keys))

    def error(count: int, repeats: int = 50) -> float:
        torch.manual_seed(count)
        found = [distribution("sum")(align(f"generalised-kernel:random_features={count}", 8)(query, keys)) for _ in range(repeats)]
        return float((torch.stack(found) - exact).square().mean().sqrt())

    errors = [error(count) for count in (64, 256, 1024)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.3)
    assert errors[2] < 0.01


def test_random_features_are_unbiased_and_not_scaled_before_they_are_divided() -> None:
    """The mean of φ(x)ᵀφ(y) over many draws is exp(xᵀy)."""
    torch.manual_seed(0)
    x, y = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), torch.tensor([0.4, 0.1, -0.3], dtype=torch.float64)
    projection = orthogonal_gaussian(30_000, 3).double()
    kernel = (log_random_features(x, projection) + log_random_features(y, projection)).exp().sum()
    assert float(kernel) == pytest.approx(math.exp(float(x @ y)), rel=0.02)


def test_rows_of_the_random_projection_are_orthogonal_in_blocks_and_normally_distributed() -> None:
    torch.manual_seed(0)
    rows = orthogonal_gaussian(4 * 10 + 3, 10)
    assert rows.shape == (43, 10)
    for block in rows.split(10):
        products = block @ block.T
        assert torch.allclose(products, torch.diag(products.diagonal()), atol=1e-4)
    many = orthogonal_gaussian(20_000, 4)
    assert torch.allclose(many.mean(dim=0), torch.zeros(4), atol=0.03)
    assert torch.allclose(many.T @ many / len(many), torch.eye(4), atol=0.05)
    assert float(many.pow(4).mean()) == pytest.approx(3, rel=0.05)


def test_random_features_are_kept_with_the_weights_and_follow_torch_s_seed() -> None:
    query, keys = given("generalised-kernel")
    torch.manual_seed(3)
    first = align("generalised-kernel:random_features=4", D_Q)
    torch.manual_seed(3)
    again = align("generalised-kernel:random_features=4", D_Q)
    other = align("generalised-kernel:random_features=4", D_Q)
    assert torch.equal(first(query, keys), again(query, keys))
    assert not torch.equal(first(query, keys), other(query, keys))
    other.load_state_dict(first.state_dict())
    assert torch.equal(first(query, keys), other(query, keys))
    assert not list(first.parameters())


def nadaraya_watson(x: Tensor, points: Tensor, values: Tensor, bandwidth: float) -> Tensor:
    kernel = [math.exp(-float((x - point).square().sum()) / (2 * bandwidth**2)) for point in points]
    return sum(weight * value for weight, value in zip(kernel, values, strict=True)) / sum(kernel)


def gaussian(bandwidth: float):  # type: ignore[no-untyped-def]
    return lambda query, keys: (-(query[:, None] - keys).square().sum(dim=2) / (2 * bandwidth**2)).exp()


def test_the_family_holds_the_nadaraya_watson_estimator() -> None:
    """By its kernel and the sum; and by general and a softmax, since −‖x − xᵢ‖²/2h² = (x, 1)ᵀ(xᵢ, −‖xᵢ‖²/2)/h² − ‖x‖²/2h²."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((3, 2), generator=generator, dtype=torch.float64)
    points = torch.randn((3, 9, 2), generator=generator, dtype=torch.float64)
    values = torch.randn((3, 9, 4), generator=generator, dtype=torch.float64)
    one, half_square = torch.ones(3, 1, dtype=torch.float64), points.square().sum(dim=2, keepdim=True) / 2
    for bandwidth in (0.3, 1.0, 4.0):
        expected = torch.stack([nadaraya_watson(*each, bandwidth) for each in zip(x, points, values, strict=True)])
        by_kernel = attend(x, points, values, gaussian(bandwidth), "sum")
        assert torch.allclose(by_kernel.output, expected, atol=1e-12)
        general = align("general", 3).double()
        with torch.no_grad():
            general.weight.copy_(torch.eye(3) / bandwidth**2)
        by_softmax = attend(torch.cat([x, one], dim=1), torch.cat([points, -half_square], dim=2), values, general, "softmax")
        assert torch.allclose(by_softmax.output, expected, atol=1e-12)
        assert torch.allclose(by_softmax.weights, by_kernel.weights, atol=1e-12)


def test_a_wide_kernel_gives_the_mean_and_a_narrow_one_the_nearest_neighbour() -> None:
    generator = torch.Generator().manual_seed(0)
    x, points = torch.randn((3, 2), generator=generator).double(), torch.randn((3, 9, 2), generator=generator).double()
    values = torch.randn((3, 9, 4), generator=generator).double()

    def estimate(bandwidth: float) -> Tensor:
        """By the kernel's logarithm and a softmax, where a narrow kernel does not round to 0."""
        return attend(x, points, values, lambda q, k: -(q[:, None] - k).square().sum(dim=2) / (2 * bandwidth**2), "softmax").output

    assert torch.allclose(estimate(1.0), attend(x, points, values, gaussian(1.0), "sum").output, atol=1e-12)
    assert torch.allclose(estimate(1e6), values.mean(dim=1), atol=1e-9)
    nearest = (x[:, None] - points).square().sum(dim=2).argmin(dim=1)
    assert torch.allclose(estimate(0.02), values[range(3), nearest], atol=1e-9)


def test_of_vectors_of_one_length_it_is_the_softmax_of_their_similarity() -> None:
    """‖x − y‖² = 2 − 2 cos on the unit sphere."""
    query, keys = (nn.functional.normalize(vectors, dim=-1) for vectors in given("similarity"))
    values = torch.eye(N, dtype=torch.float64).expand(2, N, N)
    scaled = attend(query, keys, values, lambda q, k: align("similarity")(q, k) / 0.25, "softmax")
    assert torch.allclose(scaled.output, attend(query, keys, values, gaussian(0.5), "sum").output, atol=1e-12)


def test_bad_names_settings_and_shapes_say_what_is_needed() -> None:
    query, keys = given("general")
    with pytest.raises(NameUnknownError, match="Unknown alignment 'aditive'. Did you mean 'additive'?"):
        align("aditive")
    with pytest.raises(NameUnknownError, match="Unknown distribution 'softmx'. Did you mean 'softmax'?"):
        distribution("softmx")
    with pytest.raises(SettingError, match="additive takes a hidden width of at least 1; got hidden=0"):
        align("additive:hidden=0", 4)
    with pytest.raises(SettingError, match="deep takes layers of at least 1; got layers=0"):
        align("deep:layers=0", 4)
    with pytest.raises(SettingError, match="random_features of at least 1, or none; got 0"):
        align("generalised-kernel:random_features=0", 4)
    with pytest.raises(SettingError, match="takes hidden=int up to 65,536; got 'wide'"):
        align("concat:hidden=wide", 4)
    with pytest.raises(InputError, match=r"'additive' has weights, so it needs their sizes: align\('additive', d_q=64\)"):
        align("additive")
    with pytest.raises(InputError, match="location-based has weights for each position: give their number"):
        align("location-based", 4)
    with pytest.raises(InputError, match="weights for each of 7 positions; got a map of 9"):
        align("location-based", D_Q, D_K, N)(query.float(), torch.zeros(2, 9, D_K))
    with pytest.raises(
        InputError, match="dot multiplies query and keys channel by channel; the query has 5 channels, the keys 3. Use general"
    ):
        align("dot")(query, keys)
    with pytest.raises(InputError, match=r"takes a query \(batch, d_q\) and keys \(batch, n, d_k\) of one batch; got \(5,\)"):
        align("dot")(query[0], keys)
    with pytest.raises(InputError, match="built for a query of 4 channels and keys of 4; got 5 and 3. Build it with d_q=5, d_k=3"):
        align("general", 4)(query, keys)
    with pytest.raises(InputError, match=r"one value per key.*; got \(2, 6, 3\) and \(2, 7, 3\)"):
        attend(query, keys, keys[:, 1:], built("general"), "softmax")
    with pytest.raises(SettingError, match="distribution=softmax does not fit the values of a kernel.*Write distribution=sum"):
        attend(query, keys, keys, "generalised-kernel", "softmax")
    with pytest.raises(SettingError, match="Write distribution=entmax15 or distribution=softmax or distribution=sparsemax"):
        attend(query, keys, keys, "dot", "sum")


def test_every_alignment_has_a_formula_and_a_source_and_a_network_its_name() -> None:
    for entry in alignments.entries.values():
        assert entry.metadata.formula
        assert entry.metadata.source[-5:].strip("abc")[-4:].isdigit()
    assert isinstance(align("additive", 4), DeepNetwork)

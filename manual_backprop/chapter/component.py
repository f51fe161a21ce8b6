"""One neuron followed through the five steps: each equation with its indices as in the book, and its numbers put in.

Source: chapter 2, equations (23) (z and a), (BP1), (45) (BP2 by components), (BP3) and (BP4).
"""

from collections.abc import Sequence

from manual_backprop.chapter.explain import Steps


def follow(steps: Steps, layer: int, neuron: int) -> list[str]:
    """The five steps at neuron j of layer l, a line an equation: the symbols = the numbers = the value.

    Args:
        layer: l, from 2.
        neuron: j, from 1.
    """
    error = _output_error if layer == steps.layers else _hidden_error
    return [*_feedforward(steps, layer, neuron), error(steps, layer, neuron), *_gradients(steps, layer, neuron)]


def _feedforward(steps: Steps, layer: int, j: int) -> list[str]:
    w, a = steps.network.weights[layer - 2][j - 1].tolist(), steps.activations[layer - 2].tolist()
    b, z = float(steps.network.biases[layer - 2][j - 1]), float(steps.zs[layer - 2][j - 1])
    sigma_prime, a_j = float(steps.sigma_primes[layer - 2][j - 1]), float(steps.activations[layer - 1][j - 1])
    return [
        f"z^{layer}_{j} = Σ_k w^{layer}_{j}k a^{layer - 1}_k + b^{layer}_{j} = {_products(w, a)} + {_factor(b)} "
        f"= {_number(z)}",
        f"a^{layer}_{j} = σ(z^{layer}_{j}) = {_number(a_j)}, σ′(z^{layer}_{j}) = {_number(sigma_prime)}",
    ]


def _output_error(steps: Steps, layer: int, j: int) -> str:
    delta = _number(float(steps.gradients.deltas[layer - 2][j - 1]))
    if steps.network.cost.name == "cross_entropy":
        a, y = float(steps.activations[layer - 1][j - 1]), float(steps.y[j - 1])
        return f"δ^{layer}_{j} = a^{layer}_{j} − y_{j} = {_factor(a)} − {_factor(y)} = {delta}   (BP1, σ′ cancels)"
    grad, sigma_prime = _factor(float(steps.grad_a[j - 1])), _factor(float(steps.sigma_primes[layer - 2][j - 1]))
    return f"δ^{layer}_{j} = ∂C/∂a^{layer}_{j} σ′(z^{layer}_{j}) = {grad} · {sigma_prime} = {delta}   (BP1)"


def _hidden_error(steps: Steps, layer: int, j: int) -> str:
    w, deltas = steps.network.weights[layer - 1][:, j - 1].tolist(), steps.gradients.deltas[layer - 1].tolist()
    sigma_prime = _factor(float(steps.sigma_primes[layer - 2][j - 1]))
    delta = _number(float(steps.gradients.deltas[layer - 2][j - 1]))
    symbols = f"δ^{layer}_{j} = Σ_k w^{layer + 1}_k{j} δ^{layer + 1}_k σ′(z^{layer}_{j})"
    return f"{symbols} = ({_products(w, deltas)}) · {sigma_prime} = {delta}   (BP2)"


def _gradients(steps: Steps, layer: int, j: int) -> list[str]:
    delta = float(steps.gradients.deltas[layer - 2][j - 1])
    lines = [f"∂C/∂b^{layer}_{j} = δ^{layer}_{j} = {_number(delta)}   (BP3)"]
    pairs = zip(steps.activations[layer - 2].tolist(), steps.gradients.weights[layer - 2][j - 1].tolist(), strict=True)
    for k, (a, gradient) in enumerate(pairs, start=1):
        symbols = f"∂C/∂w^{layer}_{j}{k} = a^{layer - 1}_{k} δ^{layer}_{j}"
        lines.append(f"{symbols} = {_factor(a)} · {_factor(delta)} = {_number(gradient)}   (BP4)")
    return lines


def _products(left: Sequence[float], right: Sequence[float]) -> str:
    return " + ".join(f"{_factor(p)} · {_factor(q)}" for p, q in zip(left, right, strict=True))


def _number(value: float) -> str:
    return f"{value:.6f}".replace("-", "−")


def _factor(value: float) -> str:
    return f"({_number(value)})" if value < 0 else _number(value)

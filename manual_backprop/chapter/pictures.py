"""The pictures of the scripts, from the numbers of their systems: no picture computes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from manual_backprop.activations import Activation
from manual_backprop.chapter import perceptron as perceptrons
from manual_backprop.chapter.activations import Saturation
from manual_backprop.chapter.explain import Checked, Steps
from manual_backprop.chapter.gradient_descent import Curve, Descent
from manual_backprop.chapter.how_fast import Comparison
from manual_backprop.chapter.jacobian_layout import Layouts
from manual_backprop.chapter.learning_slowdown import Neuron, Training
from manual_backprop.chapter.modified_neuron import Equation
from manual_backprop.chapter.perceptron import SEVEN, XOR, Learnt, Perceptron, Points

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
"""Okabe and Ito's colours, which the colour-blind tell apart; lines differ in dash or marker as well."""

COLOURS, MARKERS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY), "osD^vP"
COST_COLOURS = {"quadratic": (BLUE, "-"), "cross_entropy": (ORANGE, "--")}


def panels(rows: int, columns: int, width: float = 4.4, height: float = 3.8, **options: Any) -> tuple[Figure, Any]:
    """A figure of so many panels, with the axes in an array ``(rows, columns)``."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


# --- explain ------------------------------------------------------------------------------------------------------


def explain(steps: Steps, checked: Sequence[Checked]) -> Figure:
    """The network with its activations, errors and gradients, and how far autograd and finite differences are off."""
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    edges = _network(left, steps)
    figure.colorbar(edges, ax=left, label="∂C/∂w of each connection", shrink=0.8, location="left")
    rows = range(len(checked))
    # 1e-18 stands for 0, which a logarithmic axis has not.
    right.plot([max(c.from_autograd, 1e-18) for c in checked], rows, "o", color=BLUE, label="from autograd")
    right.plot([max(c.from_central, 1e-18) for c in checked], rows, "x", color=ORANGE, label="from central differences")
    right.set_yticks(rows, [c.name for c in checked])
    right.set(xscale="log", xlim=(3e-19, 1e-6), ylim=(len(checked) - 0.5, -1.5))
    right.set(xlabel="largest difference (1e-18: none)", title="the hand-written derivatives")
    right.grid(alpha=0.3)
    right.legend(fontsize=9, loc="upper center", ncols=2)
    return figure


def _network(axes: Axes, steps: Steps) -> LineCollection:
    """Draws it, and gives its coloured connections."""
    places = [[(layer, (len(a) - 1) / 2 - j) for j in range(len(a))] for layer, a in enumerate(steps.activations)]
    lines = [(p, q) for below, above in pairwise(places) for q in above for p in below]
    gradients = torch.cat([g.reshape(-1) for g in steps.gradients.weights])
    largest = float(gradients.abs().max()) or 1.0
    edges = LineCollection(lines, cmap="PuOr", clim=(-largest, largest), linewidths=3, array=gradients.numpy())
    axes.add_collection(
        LineCollection(lines, colors="0.6", linewidths=4.5)
    )  # an outline, for lines that are nearly white
    axes.add_collection(edges)
    deltas = [torch.full_like(steps.x, torch.nan), *steps.gradients.deltas]
    for layer, (row, a, delta) in enumerate(zip(places, steps.activations, deltas, strict=True), start=1):
        for j, place in enumerate(row):
            words = f"$a^{layer}_{j + 1}$ = {float(a[j]):.4f}"
            if layer > 1:
                words += f"\n$δ^{layer}_{j + 1}$ = {float(delta[j]):.4f}"
            box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": "0.3"}
            axes.text(*place, words, ha="center", va="center", fontsize=10, bbox=box)
    height = max(len(row) for row in places)
    axes.set(xlim=(-0.5, steps.layers - 0.5), ylim=(-height / 2, height / 2), yticks=[])
    axes.set_xticks(range(steps.layers), [f"layer {layer}" for layer in range(1, steps.layers + 1)])
    axes.set_title("activations a go right, errors δ come back left")
    return edges


# --- gradient descent ---------------------------------------------------------------------------------------------


def gradient_descent(valley: Sequence[Descent], quartic: Descent, compared: Sequence[Descent]) -> Figure:
    """The paths on the two curves, and what x does with each ε: on one side of the minimum, or over it and back."""
    figure, ((a, b), (c, d)) = panels(2, 2, width=5.5)
    _paths(a, valley[0].curve, valley, (-0.5, 4.5))
    _paths(b, quartic.curve, [quartic], (-0.8, 6.3))
    b.set_yscale("symlog", linthresh=10)
    for axes, over, title in (
        (c, False, "ε below a half: from one side"),
        (d, True, "ε above a half: over it and back"),
    ):
        chosen = [descent for descent in compared if (descent.path[1] < descent.curve.minimum) == over]
        for descent, colour, dash, marker in zip(chosen, COLOURS, ("-", "--", "-.", ":"), MARKERS, strict=False):
            label = f"ε = {descent.rate:g}: {descent.outcome}"
            axes.plot(descent.path[:14], color=colour, linestyle=dash, marker=marker, markersize=4, label=label)
        axes.axhline(compared[0].curve.minimum, color="0.6", zorder=0)
        axes.set(xlabel="step", ylabel="x", ylim=(-16, 28) if over else (1.5, 5.5), title=title)
        axes.legend(fontsize=8, loc="upper left" if over else "upper right")
    return figure


def _paths(axes: Axes, curve: Curve, descents: Sequence[Descent], window: tuple[float, float]) -> None:
    xs = torch.linspace(*window, 400, dtype=torch.float64).tolist()
    axes.plot(xs, [curve.function(x) for x in xs], color="0.6")
    for number, descent in enumerate(descents):
        path = [x for x in descent.path if window[0] <= x <= window[1]]
        label = f"from {descent.path[0]:g}, {descent.steps} steps"
        colour, marker = COLOURS[number], MARKERS[number]
        axes.plot(path, [curve.function(x) for x in path], marker, ls="-", lw=0.7, ms=4, color=colour, label=label)
    axes.plot(curve.minimum, curve.function(curve.minimum), "k*", markersize=12, label="minimum")
    axes.set(xlabel="x", ylabel="f(x)", title=f"{curve.name}, ε = {descents[0].rate:g}")
    axes.legend(fontsize=8, loc="upper center")


# --- perceptron ---------------------------------------------------------------------------------------------------


def perceptron(seven: Perceptron, xor: Perceptron, network: Learnt) -> Figure:
    """The line between the seven points, XOR by a perceptron and by the network, and how each learns."""
    figure, ((a, b), (c, d)) = panels(2, 2, width=5)
    for axes, data, found, title in ((a, SEVEN, seven, "seven points"), (b, XOR, xor, "XOR")):
        outcome = f"all right after {found.passes} passes" if found.converged else f"not after {found.passes} passes"
        _shade(axes, data, lambda x, weight=found.weight: perceptrons.output(weight, x))
        _scatter(axes, data, f"perceptron, {title}: {outcome}")
    _shade(c, XOR, lambda x: network.network.feedforward(x)[..., 0])
    _scatter(c, XOR, f"2-2-1 sigmoid network, XOR: after {len(network.costs) - 1} steps")
    d.plot(range(1, seven.passes + 1), seven.mistakes, color=BLUE, marker="o", markersize=4, label="seven points")
    d.plot(range(1, xor.passes + 1), xor.mistakes, color=ORANGE, linestyle="--", label="XOR")
    d.set(xlabel="pass through the points", ylabel="mistakes in the pass", xscale="log", ylim=(-0.2, 7))
    d.set_title("perceptron: mistakes", fontsize=10)
    d.legend(loc="upper right")
    return figure


def _shade(axes: Axes, data: Points, output: Any) -> None:
    """The output in colour, from 0 to 1, and the line where it is a half."""
    (left, bottom), (right, top) = (data.x.amin(0) - 0.7).tolist(), (data.x.amax(0) + 0.7).tolist()
    xs, ys = torch.linspace(left, right, 301), torch.linspace(bottom, top, 301)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).to(data.x.dtype)
    values = output(grid)
    picture = axes.imshow(
        values.numpy(), origin="lower", extent=(left, right, bottom, top), cmap="cividis", vmin=0, vmax=1, alpha=0.55
    )
    if values.min() < 0.5 < values.max():
        axes.contour(xs.numpy(), ys.numpy(), values.numpy(), levels=[0.5], colors="k")
    axes.figure.colorbar(picture, ax=axes, label="output", shrink=0.8)


def _scatter(axes: Axes, data: Points, title: str) -> None:
    for value, marker, colour in ((0, "o", BLUE), (1, "^", ORANGE)):
        x = data.x[data.y == value]
        axes.scatter(
            x[:, 0], x[:, 1], marker=marker, c=colour, edgecolors="w", s=90, zorder=3, label=f"should be {value}"
        )
    axes.set(xlabel="$x_1$", ylabel="$x_2$")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="upper center", ncols=2, framealpha=1)


# --- activations --------------------------------------------------------------------------------------------------


def activations(found: Sequence[Saturation], bound: float, reach: float = 6.0) -> Figure:
    """Each activation and its derivative; grey where it saturates."""
    figure, axes = panels(2, len(found), width=3.6, height=2.8, sharex=True)
    z = torch.linspace(-reach, reach, 601, dtype=torch.float64)
    for (above, below), saturation in zip(axes.T, found, strict=True):
        f = saturation.activation
        above.plot(z, f.function(z), color=BLUE)
        below.plot(z, f.derivative_at(z), color=ORANGE)
        above.set(title=f.name, ylabel="a = f(z)")
        below.set(xlabel="z", ylabel="f′(z)", xlim=(-reach, reach), ylim=(-0.05, 1.1))
        for panel in (above, below):
            panel.grid(alpha=0.3)
            panel.axvspan(-reach, max(-reach, saturation.below), color="0.5", alpha=0.25, linewidth=0)
            panel.axvspan(min(reach, saturation.above), reach, color="0.5", alpha=0.25, linewidth=0)
    figure.suptitle(f"grey: saturated, f′(z) < {bound:g}", fontsize=10)
    return figure


# --- how fast -----------------------------------------------------------------------------------------------------


def how_fast(comparisons: Sequence[Comparison]) -> Figure:
    """Passes and seconds against the number of weights."""
    figure, ((left, right),) = panels(1, 2, width=5)
    weights = [c.weights for c in comparisons]
    ways = (("naive: (C(w + ε e_j) − C(w))/ε", "naive", BLUE, "o-"), ("backpropagation", "backprop", ORANGE, "s--"))
    for label, way, colour, style in ways:
        found = [getattr(c, way) for c in comparisons]
        left.plot(weights, [w.passes.forward + w.passes.backward for w in found], style, color=colour, label=label)
        right.plot(weights, [w.seconds for w in found], style, color=colour, label=label)
    left.set(ylabel="passes through the network")
    right.set(ylabel="time in s")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="number of weights")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9, loc="center right")
    return figure


# --- learning slowdown --------------------------------------------------------------------------------------------


def neurons(found: Sequence[Neuron]) -> Figure:
    """One neuron by either cost: output, speed, and what σ′(z) makes of the error."""
    figure, ((left, middle, right),) = panels(1, 3)
    for neuron in found:
        colour, dash = COST_COLOURS[neuron.cost]
        label = neuron.cost.replace("_", "-")
        left.plot(neuron.outputs, color=colour, linestyle=dash, label=label)
        middle.plot(neuron.speeds, color=colour, linestyle=dash, label=label)
        right.plot(neuron.outputs, neuron.deltas, color=colour, linestyle=dash, label=label)
    left.set(xlabel="epoch", ylabel="output a (should be 0)", title="what it puts out", ylim=(0, 1.05))
    middle.set(xlabel="epoch", ylabel="|∂C/∂w|", title="how fast it learns")
    right.set(xlabel="output a (wrong ← → right)", ylabel="δ", title="δ = (a − y) σ′(z), or δ = a − y", xlim=(1, 0))
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9, loc="upper right")
    return figure


def trainings(found: Sequence[Training]) -> Figure:
    """MNIST by either cost: accuracy, and ‖δ^L‖ with and without σ′(z)."""
    figure, ((left, middle, right),) = panels(1, 3)
    for training in found:
        colour, dash = COST_COLOURS[training.cost]
        label = training.cost.replace("_", "-")
        left.plot(training.steps, training.accuracies, color=colour, linestyle=dash, label=label)
        middle.plot(training.steps, training.with_sigma_prime, color=colour, linestyle=dash, label=label)
        right.plot(training.steps, training.without, color=colour, linestyle=dash, label=label)
    left.set(ylabel="test accuracy in %", title="MNIST from a badly wrong start", ylim=(0, 100))
    middle.set(ylabel="‖(a − y) ⊙ σ′(z)‖, mean over images", title="with σ′(z): $δ^L$ of the quadratic cost")
    right.set(ylabel="‖a − y‖, mean over images", title="without: $δ^L$ of the cross-entropy")
    for axes, place in ((left, "lower right"), (middle, "upper right"), (right, "upper right")):
        axes.set(xlabel="step (mini-batch of 10)", xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9, loc=place)
    middle.set_ylim(0, 1.3 * max(max(training.with_sigma_prime) for training in found))  # room for the legend
    return figure


# --- modified neuron ----------------------------------------------------------------------------------------------


def modified_neuron(f: Activation, found: dict[str, list[Equation]]) -> Figure:
    """The modified neuron beside σ, and the errors of the chapter's equations and of the exercises' own."""
    figure, ((left, right),) = panels(1, 2, width=6)
    z = torch.linspace(-5, 5, 401, dtype=torch.float64)
    left.plot(z, torch.sigmoid(z), color=BLUE, label="σ(z)")
    left.plot(z, torch.sigmoid(z) * (1 - torch.sigmoid(z)), color=BLUE, linestyle=":", label="σ′(z)")
    left.plot(z, f.function(z), color=ORANGE, linestyle="--", label="f(z) = ln(1 + $e^z$)")
    left.plot(z, f.derivative_at(z), color=ORANGE, linestyle="-.", label="f′(z) = σ(z)")
    left.set(xlabel="z", ylabel="activation, derivative", ylim=(-0.1, 3), title="the modified neuron beside the others")
    left.legend(loc="upper left")
    ticks = [f"{e.code}\n{name.split(' is ')[0].split(', ')[0]}" for name, es in found.items() for e in es]
    equations = [e for es in found.values() for e in es]
    # 1e-18 stands for 0, which a logarithmic axis has not.
    for values, colour, marker, label in (
        ([e.unchanged for e in equations], BLUE, "o", "as the chapter has it"),
        ([e.exercise for e in equations], ORANGE, "x", "as the exercise has it"),
    ):
        right.plot([max(v, 1e-18) for v in values], range(len(values)), marker, color=colour, label=label, markersize=8)
    right.set_yticks(range(len(ticks)), [tick.replace("\n", ": ") for tick in ticks], fontsize=8)
    right.set(xscale="log", xlim=(3e-19, 10), xlabel="largest difference from autograd (1e-18: none)")
    right.invert_yaxis()
    right.grid(alpha=0.3)
    right.legend(fontsize=9, loc="upper center")
    return figure


# --- Jacobians ----------------------------------------------------------------------------------------------------


def jacobian_layout(found: Layouts) -> Figure:
    """The matrices, and the third-order tensor slice by slice."""
    slices = {f"∂$z^2_{j}$/∂$w^2$": matrix for j, matrix in enumerate(found.third_order, start=1)}
    first = {
        "Σ′($z^2$), diagonal": found.sigma_prime,
        "∂$z^3$/∂$z^2$, numerator layout": found.numerator,
        "∂$z^3$/∂$z^2$, denominator layout": found.denominator,
        "BP4: $δ^2 x^T$": found.gradients.weights[0],
    }
    columns = max(len(first), len(slices))
    figure, axes = panels(2, columns, width=3.2, height=3)
    for row, matrices in zip(axes, (first, slices), strict=True):
        for panel in row[len(matrices) :]:
            panel.axis("off")
        for panel, (title, matrix) in zip(row, matrices.items(), strict=False):
            _matrix(panel, title, matrix)
    figure.suptitle("below: the third-order tensor ∂$z^2$/∂$w^2$, a slice a neuron; 0 is left blank", fontsize=11)
    return figure


def _matrix(axes: Axes, title: str, matrix: Tensor) -> None:
    largest = float(matrix.abs().max())
    axes.imshow(matrix.numpy(), cmap="PuOr", vmin=-1.6 * largest, vmax=1.6 * largest)
    for row, line in enumerate(matrix.tolist()):
        for column, value in enumerate(line):
            axes.text(column, row, f"{value:.3f}" if value else "", ha="center", va="center", fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xticks(range(matrix.shape[1]), [str(k + 1) for k in range(matrix.shape[1])])
    axes.set_yticks(range(matrix.shape[0]), [str(j + 1) for j in range(matrix.shape[0])])
    axes.set(xlabel="column", ylabel="row")

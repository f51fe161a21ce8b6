"""The pictures of a run, drawn with matplotlib."""

from matplotlib.figure import Figure
from torch import Tensor

from manual_backprop.training.data import Images


def curves(history: list[dict[str, float]]) -> Figure:
    """Cost and accuracy after each epoch, on train and test."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, what, unit in zip(figure.subplots(1, 2), ("cost", "accuracy"), ("", " in %"), strict=True):
        for part in ("train", "validation", "test"):
            if f"{what}_{part}" in history[0]:
                axes.plot(epochs, [row[f"{what}_{part}"] for row in history], label=part, marker=".")
        axes.set(xlabel="epoch", ylabel=what + unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def confusion(counts: Tensor) -> Figure:
    """Test images by their digit (row) and the network's answer (column); only the mistakes are coloured."""
    figure = Figure(figsize=(5.4, 5), layout="constrained")
    axes = figure.subplots()
    mistakes = counts.clone()
    mistakes.fill_diagonal_(0)
    axes.imshow(mistakes.numpy(), cmap="Oranges")
    dark = float(mistakes.max()) / 2
    for row, line in enumerate(counts.tolist()):
        for column, count in enumerate(line):
            colour = "0.5" if row == column else "white" if count > dark else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlabel="the network's answer", ylabel="digit", xticks=range(10), yticks=range(10))
    return figure


def most_wrong(images: Images, outputs: Tensor, count: int = 25, columns: int = 5) -> Figure:
    """The test digits with the smallest output at the right digit, and what they were taken for, with both outputs."""
    right = outputs.gather(1, images.labels[:, None]).squeeze(1)
    worst = right.argsort()[:count]
    figure = Figure(figsize=(7, 7.6))
    # One pair of axes for all: 25 of their own would take most of a second to lay out.
    axes = figure.add_axes((0.0, 0.0, 1.0, 0.96))
    for place, i in enumerate(worst.tolist()):
        row, column = divmod(place, columns)
        answer = int(outputs[i].argmax())
        picture = images.x[i].reshape(28, 28).float().cpu().numpy()
        axes.imshow(picture, cmap="gray_r", extent=(column + 0.1, column + 0.9, row + 1.0, row + 0.2))
        caption = f"{int(images.labels[i])}: {float(right[i]):.2g}, {answer}: {float(outputs[i, answer]):.2g}"
        axes.text(column + 0.5, row + 0.15, caption, ha="center", fontsize=8)
    axes.set(xlim=(0, columns), ylim=(-(-count // columns), 0))
    axes.axis("off")
    figure.suptitle("the digit and the network's answer, each with its output", fontsize=9)
    return figure

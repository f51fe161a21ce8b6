"""`Monitor`: the backward pass of any torch model on TensorBoard."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from manual_backprop import _torch
from manual_backprop.monitor.recording import Recording

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVERY = 1000
"""A step of so many is recorded, which costs less than 5 % of the time of the smallest network's training."""

PICTURED = 10
"""The first of so many recorded steps shows the weights as pictures, because a PNG takes longer than all the rest."""

LAYOUT = {
    "Learning": {
        "cost": ["Multiline", ["cost/(train|validation|test)$"]],
        "accuracy": ["Multiline", ["accuracy/(train|validation|test)$"]],
        "learning speed ‖Δw‖∕‖w‖": ["Multiline", ["learning_speed/.*"]],
    },
    "Error δ": {
        "‖δ‖ by layer": ["Multiline", ["error/.*/norm$"]],
        "‖∂C∕∂w‖ and ‖∂C∕∂b‖ by parameter": ["Multiline", ["gradient/.*/norm$"]],
    },
    "Saturation": {
        "share of units with σ′(z) ≈ 0": ["Multiline", ["saturation/.*/share$"]],
        "share of dead ReLUs": ["Multiline", ["saturation/.*/dead$"]],
        "share of inputs near 0": ["Multiline", ["input/.*"]],
    },
    "Agreement": {"hand-written against autograd, relative error": ["Multiline", ["agreement/.*"]]},
}
"""The dashboard "Custom scalars"."""


class Monitor:
    """Shows each layer's error, saturation, gradient and learning speed on TensorBoard, for any `nn.Module`.

    Every so many steps it follows one step by hooks. A step is a forward pass of ``model`` in training mode with
    gradients enabled, outside of `torch.func`'s transforms; what it and the next backward pass showed is written when
    another forward pass begins, and by `close`. Tags are named by the module's or the parameter's path in the model:

    - ``error/<module>/norm`` and ``/delta``: ‖δ^l‖ and a histogram of δ^l = ∂C/∂z^l (BP1, BP2), of the cost as it was
      differentiated; for a module whose output is no a = σ(z) of a layer of ours, that output counts as z^l.
    - ``saturation/<module>/share``, ``/dead``, ``/z``: the share of units with |σ′(z)| below `measures.SATURATED`, of
      ReLUs that are 0 on all samples, and a histogram of z. It takes a layer of ours or an activation module, such as
      `nn.ReLU`; after a Linear, a convolution … its figures stand under that module. A function such as
      `torch.relu` cannot be seen.
    - ``input/<module>``: the share of inputs a_in below `measures.NEAR_ZERO`, whose weights learn slowly (BP4).
    - ``gradient/<parameter>/norm``, ``/values``: ‖∂C/∂w‖ and ‖∂C/∂b‖ (BP3, BP4), as the backward pass gives them:
      before clipping, and before they are added to what was there or averaged over processes.
    - ``learning_speed/<parameter>``: the update-to-weight ratio ‖Δw‖/‖w‖ of the optimizer's step.
    - ``agreement/<module>/weight``, ``/bias``, ``/input``, with ``reference``: the relative error of what the
      hand-written backward of a layer of ours returned, against autograd's of the same layer in plain torch.
    - ``weights/<parameter>``, ``activations/<module>``: histograms; ``weights/<parameter>/image``: the first layer's
      weights, where a neuron has as many inputs as a square image has pixels.
    - ``not_finite``: a text for each step with a NaN or an infinity, which names the layers, where it began first.

    Between recorded steps there is one hook, of the model as a whole, which counts. A recorded step keeps a copy of the
    parameters. Under `DistributedDataParallel` rank 0 alone writes, of its own samples. In a model from `torch.compile`
    and in a `NetworkCost` no hook of a layer runs: there only what belongs to a parameter is shown.

    Args:
        model: any module; wrapped in `DistributedDataParallel` or `torch.compile`, it is given wrapped.
        writer: a `torch.utils.tensorboard.SummaryWriter`, which stays open.
        every: steps from one recorded step to the next; the first is recorded.
        reference: whether to record ``agreement/``.

    Attributes:
        step: the number of the next step; it may be set, where training goes on after a break.

    Raises:
        TypeError: ``model`` is no module, or ``writer`` no writer.
        ValueError: ``every`` is no positive integer.

    Example:
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 1))
        >>> with SummaryWriter(folder) as writer, Monitor(model, writer, every=10):  # doctest: +SKIP
        ...     train(model)
    """

    def __init__(self, model: nn.Module, writer: "SummaryWriter", every: int = EVERY, reference: bool = False) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every: expected a positive number of steps, found {every!r}")
        self.model, self.writer, self.every, self.reference = model, writer, every, reference
        self.step = self._recorded = 0
        self._recording: Recording | None = None
        self._handle: Any = None
        self._paused = not _first_rank()
        if self._paused:
            return
        if not hasattr(writer, "add_histogram_raw"):
            raise TypeError(f"writer: expected a SummaryWriter, found {type(writer).__name__}")
        writer.add_custom_scalars(LAYOUT)
        self._handle = model.register_forward_pre_hook(_Hook(self))

    def flush(self) -> None:
        """Write what the last recorded step showed now, with its learning speeds up to now."""
        self._write(last=True)

    def close(self) -> None:
        """Write what is left, and leave the model as it was."""
        self.flush()
        if self._handle is not None:
            self._handle.remove()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forward passes in this block are no steps."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _forward_begins(self) -> None:
        if self._paused or _stand_ins():
            return
        # A step ends at the first forward pass after its backward pass, because a siamese network makes several before.
        if self._recording is not None and self._recording.differentiated:
            self._write(last=False)
        if not (self.model.training and torch.is_grad_enabled()):
            return
        step, self.step = self.step, self.step + 1
        if step % self.every == 0:
            self.flush()
            self._recording = Recording(_unwrapped(self.model), step, self.reference)
            self._recording.attach(self.model, layers=_torch.compiled_module(self.model) is None)

    def _write(self, last: bool) -> None:
        """Writes the recorded step once, and its learning speeds as soon as the parameters have moved.

        They may move some forward passes later, because the optimizer waits where gradients are accumulated.
        """
        recording = self._recording
        if recording is None:
            return
        recording.detach()
        self._write_content(recording)
        speeds = recording.learning_speeds()
        for tag, value in speeds.items():
            self.writer.add_scalar(tag, value, recording.step)
        if speeds or last:
            self._recording = None

    def _write_content(self, recording: Recording) -> None:
        if recording.written:
            return
        recording.written, step = True, recording.step
        picture = recording.image() if self._recorded % PICTURED == 0 else None
        if picture is not None:
            self.writer.add_image(*picture, step)
        self._recorded += 1
        for tag, value in recording.scalars.items():
            self.writer.add_scalar(tag, value, step)
        for tag, histogram in recording.histograms.items():
            self.writer.add_histogram_raw(tag, *histogram, global_step=step)
        if recording.marks:
            self.writer.add_text("not_finite", "\n".join(f"- {mark}" for mark in recording.marks), step)


class _Hook:
    """The hook of the model as a whole; in a copy of the model, or one read from a file, it does nothing."""

    def __init__(self, monitor: Monitor | None = None) -> None:
        self.monitor = monitor

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.monitor is not None:
            self.monitor._forward_begins()

    def __reduce__(self) -> tuple:
        return type(self), ()


def _stand_ins() -> bool:
    """Whether a compiler, a trace or a transform runs the model now, with tensors that have no numbers."""
    return torch.compiler.is_compiling() or _torch.is_tracing() or _torch.transform_is_active()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module within `torch.compile` and `DistributedDataParallel`, whose paths the user knows."""
    if (inside := _torch.compiled_module(model)) is not None:
        return _unwrapped(inside)
    return _unwrapped(model.module) if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _first_rank() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0

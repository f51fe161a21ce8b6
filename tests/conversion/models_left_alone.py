"""Models with a Linear and an activation that `convert` must leave alone, and the reason that its report gives."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.cases import params
from tests.conversion.models_to_convert import Called, Net, shared


class Residual(Net):
    def forward(self, x):
        a = self.act(self.fc(x))
        return a + self.out(a)


class Squared(Net):
    def forward(self, x):
        a = self.act(self.fc(x))
        return a * a


class UsesWeightedInput(Net):
    def forward(self, x):
        z = self.fc(x)
        return self.act(z) + z


class KeepsInAttribute(Net):
    def forward(self, x):
        self.z = self.fc(x)
        return self.act(self.z)


class KeepsInList(Net):
    def forward(self, x):
        z = self.fc(x)
        self.log.append(z)
        return self.act(z)


class KeepsActivation(Net):
    def forward(self, x):
        a = self.act(self.fc(x))
        self.log.append(a)
        return self.out(a)


class FunctionInForward(Net):
    def forward(self, x):
        return self.out(F.relu(self.fc(x)))


class MethodInForward(Net):
    def forward(self, x):
        return self.out(self.fc(x).sigmoid())


class LooksAtInput(Net):
    def forward(self, x):
        if x.sum() > 0:
            return self.fc(x)
        return self.act(self.fc(x))


class OnlyInTraining(Net):
    def forward(self, x):
        z = self.fc(x)
        return self.act(z) if self.training else z


class OnlyInEvaluation(Net):
    def forward(self, x):
        z = self.fc(x)
        return z if self.training else self.act(z)


class OnlyWithoutMask(Net):
    def forward(self, x, mask=None):
        z = self.fc(x)
        return self.act(z) if mask is None else z * mask


class OnlyWithMask(Net):
    def forward(self, x, mask=None):
        z = self.fc(x)
        return z if mask is None else self.act(z)


class WithFlag(Net):
    def forward(self, x, logits=False):
        z = self.fc(x)
        return z if logits else self.act(z)


class CalledOnInput(Net):
    def forward(self, x):
        return self.act(self.fc(x)) + self.act(x)


class TwoLinears(Net):
    def forward(self, x):
        return self.act(self.fc(x)) + self.act(self.out(x))


class Alternating(Net):
    def __init__(self) -> None:
        super().__init__(nn.Tanh())
        self.other = nn.Sigmoid()

    def forward(self, x):
        return self.other(self.fc(self.act(self.fc(x))))


class WithoutGrad(Net):
    def forward(self, x):
        z = self.fc(x)
        with torch.no_grad():
            return self.act(z)


class WithAnArgument(Net):
    def forward(self, x):
        return self.act(self.fc(x), inplace=True)


class FromPlainList(Net):
    def __init__(self) -> None:
        super().__init__(nn.ReLU())
        self.log = [self.act]

    def forward(self, x):
        return self.log[0](self.fc(x))


class FromOutside(nn.Module):
    """Its forward cannot be followed, and calls a layer of the Sequential in it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.body = nn.Sequential(self.fc, nn.ReLU())

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else self.body(x)


class FromOutsideInAList(nn.Module):
    """The same, with the layer in a container that has no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])
        self.body = nn.Sequential(self.layers[0], nn.ReLU())

    def forward(self, x):
        return self.layers[0](x) if x.sum() > 0 else self.body(x)


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def pair_with(change: Callable[[nn.Linear, nn.Module], object], dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4, dtype=dtype), nn.Tanh())
    change(*model)
    return model


def nothing(*_: object) -> None:
    pass


def forward_of_its_own(module: nn.Module) -> nn.Module:
    module.forward = module.forward
    return module


def bare_module() -> nn.Module:
    """Its class has no forward, and what it has calls a layer of the Sequential in it."""
    model = nn.Module()
    model.fc = nn.Linear(4, 4)
    model.body = nn.Sequential(model.fc, nn.ReLU())
    model.forward = model.fc.forward
    return model


@dataclass(frozen=True)
class Staying:
    """A model, a Linear in it that must stay, and the reason."""

    build: Callable[[], nn.Module]
    path: str
    why: str


def staying_net(build: Callable[[], nn.Module], why: str) -> Staying:
    return Staying(build, "fc", why)


def hooked(name: str, position: int) -> Callable[[], nn.Module]:
    return lambda: pair_with(lambda *pair: getattr(pair[position], name)(nothing))


HOOKS_OF_AN_ACTIVATION = {
    "register_forward_hook": "_forward_hooks",
    "register_forward_pre_hook": "_forward_pre_hooks",
    "register_full_backward_hook": "_backward_hooks",
    "register_full_backward_pre_hook": "_backward_pre_hooks",
    "register_state_dict_pre_hook": "_state_dict_pre_hooks",
}
HOOKS_OF_AN_OUTPUT = {
    name: HOOKS_OF_AN_ACTIVATION[name]
    for name in ("register_forward_hook", "register_full_backward_hook", "register_full_backward_pre_hook")
}

STAYING = params(
    {
        f"activation.{name}": Staying(hooked(name, 1), "0", f"its activation 1 has a hook ({attribute})")
        for name, attribute in HOOKS_OF_AN_ACTIVATION.items()
    }
    | {
        f"linear.{name}": Staying(hooked(name, 0), "0", f"it has a hook on its output ({attribute})")
        for name, attribute in HOOKS_OF_AN_OUTPUT.items()
    }
    | {
        "shared": Staying(shared, "2", "its activation is shared: it is 1 and 3"),
        "output_of_activation_used_twice": staying_net(
            lambda: Residual(nn.ReLU()), "the output of its activation act is used 2 times"
        ),
        "output_of_activation_squared": staying_net(
            lambda: Squared(nn.ReLU()), "the output of its activation act is used 2 times"
        ),
        "output_of_activation_kept": staying_net(
            lambda: KeepsActivation(nn.ReLU()), "the output of its activation act is used 2 times"
        ),
        "output_used_twice": staying_net(
            lambda: UsesWeightedInput(nn.Tanh()), "its output is used 2 times in the forward of UsesWeightedInput"
        ),
        "output_kept_in_attribute": staying_net(
            lambda: KeepsInAttribute(nn.Tanh()), "its output is kept by the forward of KeepsInAttribute"
        ),
        "output_kept_in_list": staying_net(
            lambda: KeepsInList(nn.Tanh()), "its output is kept by the forward of KeepsInList"
        ),
        "function_in_forward": staying_net(
            lambda: FunctionInForward(nn.ReLU()),
            "its output goes to relu(), which is written into the forward of FunctionInForward",
        ),
        "method_in_forward": staying_net(
            lambda: MethodInForward(nn.ReLU()),
            "its output goes to sigmoid(), which is written into the forward of MethodInForward",
        ),
        "looks_at_input": staying_net(
            lambda: LooksAtInput(nn.ReLU()), "torch.fx cannot follow the forward of LooksAtInput: symbolically traced"
        ),
        "only_in_training": staying_net(lambda: OnlyInTraining(nn.ReLU()), "its output is what OnlyInTraining returns"),
        "only_in_evaluation": staying_net(
            lambda: OnlyInEvaluation(nn.ReLU()), "its output is what OnlyInEvaluation returns"
        ),
        "only_without_mask": staying_net(
            lambda: OnlyWithoutMask(nn.ReLU()), "its output goes to mul(), which is written into the forward"
        ),
        "only_with_mask": staying_net(lambda: OnlyWithMask(nn.ReLU()), "its output is what OnlyWithMask returns"),
        "with_flag": staying_net(lambda: WithFlag(nn.ReLU()), "torch.fx cannot follow the forward of WithFlag: symb"),
        "activation_called_on_input": staying_net(
            lambda: CalledOnInput(nn.ReLU()), "its activation act is also called on something else"
        ),
        "activation_of_two_linears": staying_net(
            lambda: TwoLinears(nn.ReLU()), "its activation act is also called on something else"
        ),
        "function_of_two_linears": staying_net(
            lambda: TwoLinears(torch.relu), "its activation act is also called on something else"
        ),
        "two_activations": staying_net(Alternating, "its output goes to different activations: act and other"),
        "without_grad": staying_net(
            lambda: WithoutGrad(nn.ReLU()), "its output is passed on with other arguments, or in"
        ),
        "with_an_argument": staying_net(lambda: WithAnArgument(F.relu), "its output is passed on with other arguments"),
        "from_plain_list": staying_net(FromPlainList, "its output goes to ReLU"),
        "called_from_outside": staying_net(FromOutside, "torch.fx cannot follow the forward of FromOutside"),
        "called_from_outside_in_a_list": Staying(
            FromOutsideInAList, "layers.0", "torch.fx cannot follow the forward of FromOutsideInAList"
        ),
        "subclass": Staying(lambda: nn.Sequential(Scaled(4, 4), nn.ReLU()), "0", "Scaled is a subclass of Linear"),
        "lazy": Staying(lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU()), "0", "LazyLinear is a subclass of Linear"),
        "attention": Staying(
            lambda: nn.MultiheadAttention(4, 2), "out_proj", "NonDynamicallyQuantizableLinear is a subclass of Linear"
        ),
        "parametrized": Staying(
            lambda: pair_with(lambda linear, _: parametrizations.weight_norm(linear)),
            "0",
            "ParametrizedLinear is a subclass of Linear",
        ),
        "forward_of_linear": Staying(
            lambda: pair_with(lambda linear, _: forward_of_its_own(linear)), "0", "it has a forward of its own"
        ),
        "forward_of_activation": Staying(
            lambda: pair_with(lambda _, act: forward_of_its_own(act)), "0", "its activation 1 has a forward of its own"
        ),
        "forward_of_sequential": Staying(
            lambda: forward_of_its_own(pair_with(nothing)), "0", "this Sequential has a forward of its own"
        ),
        "forward_of_model": staying_net(
            lambda: forward_of_its_own(Called(nn.ReLU())), "this Called has a forward of its own"
        ),
        "forward_of_bare_module": staying_net(bare_module, "this Module has a forward of its own"),
        "forward_of_torch": Staying(
            lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2]),
            "head",
            "the forward of AdaptiveLogSoftmaxWithLoss is torch's own",
        ),
        "compiled_linear": Staying(
            lambda: pair_with(lambda linear, _: linear.compile()), "0", "it has a forward of its own"
        ),
        "attribute_activation": Staying(
            lambda: pair_with(lambda linear, _: setattr(linear, "activation", "tanh")),
            "0",
            "it has an attribute `activation` of its own",
        ),
        "complex": Staying(
            lambda: pair_with(nothing, torch.complex64), "0", "its weight is torch.complex64, which has no σ′ here"
        ),
        "another_activation": Staying(
            lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU()), "0", "its output goes to GELU"
        ),
        "last": Staying(lambda: nn.Sequential(nn.Linear(4, 4)), "0", "it is the last of its Sequential"),
        "no_forward": Staying(lambda: nn.ModuleList([nn.Linear(4, 4), nn.ReLU()]), "0", "no forward calls it"),
    }
)

"""Drop-in layers put into a model of torch's (`convert`), taken out again (`revert`), and told of (`conversions`)."""

from manual_backprop.conversion.report import Conversion as Conversion
from manual_backprop.conversion.report import conversions as conversions
from manual_backprop.conversion.swap import FUSIONS as FUSIONS
from manual_backprop.conversion.swap import convert as convert
from manual_backprop.conversion.swap import revert as revert

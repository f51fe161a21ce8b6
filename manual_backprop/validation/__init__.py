"""Is a hand-written backward pass right? `validate` asks, and says where it is not, why, and how to mend it."""

from manual_backprop.validation.report.finding import Finding as Finding
from manual_backprop.validation.report.report import Report as Report
from manual_backprop.validation.report.report import ValidationError as ValidationError
from manual_backprop.validation.rule import Rule as Rule
from manual_backprop.validation.rules import RULES as RULES
from manual_backprop.validation.validate import validate as validate

"""Kinds of examples, one file each; and what their makers import beside them."""

from policies.examples.kind import Example as Example
from policies.examples.kind import LabelledStep as LabelledStep
from policies.examples.kind import TokenSequence as TokenSequence
from policies.examples.kind import TokenSpan as TokenSpan
from policies.examples.kinds.pair import PreferencePair as PreferencePair
from policies.examples.kinds.supervised import SupervisedExample as SupervisedExample
from policies.examples.kinds.unpaired import UnpairedExample as UnpairedExample

ExampleKind = type[Example]
"""A kind, as losses and builders name it."""

"""Dropout layers for Equinox, of every kind: see `thinned.dropout.equinox`."""

from thinned.dropout.equinox import AlphaDropout as AlphaDropout
from thinned.dropout.equinox import ChannelDropout as ChannelDropout
from thinned.dropout.equinox import ConcreteDropout as ConcreteDropout
from thinned.dropout.equinox import DropBlock as DropBlock
from thinned.dropout.equinox import DropConnectDense as DropConnectDense
from thinned.dropout.equinox import Dropout as Dropout
from thinned.dropout.equinox import DropoutLayer as DropoutLayer
from thinned.dropout.equinox import DropPath as DropPath
from thinned.dropout.equinox import GaussianDropout as GaussianDropout

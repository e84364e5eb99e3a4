"""Dropout layers for Flax NNX, of every kind: see `thinned.dropout.nnx`."""

from thinned.dropout.nnx import AlphaDropout as AlphaDropout
from thinned.dropout.nnx import ChannelDropout as ChannelDropout
from thinned.dropout.nnx import ConcreteDropout as ConcreteDropout
from thinned.dropout.nnx import DropBlock as DropBlock
from thinned.dropout.nnx import DropConnectDense as DropConnectDense
from thinned.dropout.nnx import Dropout as Dropout
from thinned.dropout.nnx import DropoutLayer as DropoutLayer
from thinned.dropout.nnx import DropPath as DropPath
from thinned.dropout.nnx import GaussianDropout as GaussianDropout
from thinned.dropout.nnx import Loss as Loss
from thinned.dropout.nnx import Rate as Rate
from thinned.dropout.nnx import rekey as rekey

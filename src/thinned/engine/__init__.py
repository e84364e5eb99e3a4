"""Training as pure steps under one loop in time, and what a run keeps on the disk."""

from thinned.data.batch import Batch as Batch
from thinned.engine.step import TrainState as TrainState
from thinned.engine.step import create_state as create_state
from thinned.engine.step import train_step as train_step

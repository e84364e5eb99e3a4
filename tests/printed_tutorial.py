"""The program of Flax's dropout tutorial in plain Flax and Optax, independent of Thinned.

``corrected=False`` is the program as printed; ``corrected=True`` takes the keys it is given.
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state


class CNN(nn.Module):
    training: bool
    classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(features=32, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.Conv(features=64, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.Dropout(rate=0.5, deterministic=not self.training)(x)
        return nn.Dense(features=self.classes)(x)


def cross_entropy(logits, labels):
    onehot = jax.nn.one_hot(labels, num_classes=logits.shape[-1])
    return optax.softmax_cross_entropy(logits=logits, labels=onehot).mean()


def create(params_key, learning_rate, shape, classes=10):
    cnn = CNN(training=False, classes=classes)
    params = cnn.init(params_key, jnp.ones([1, *shape]))["params"]
    return train_state.TrainState.create(
        apply_fn=cnn.apply, params=params, tx=optax.adam(learning_rate)
    )


@jax.jit
def train_step(state, images, labels, dropout_key):
    def loss_fn(params):
        model = CNN(training=True, classes=params["Dense_0"]["bias"].shape[0])
        logits = model.apply({"params": params}, images, rngs={"dropout": dropout_key})
        return cross_entropy(logits, labels), logits

    grads, logits = jax.grad(loss_fn, has_aux=True)(state.params)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
    return state.apply_gradients(grads=grads), cross_entropy(logits, labels), accuracy

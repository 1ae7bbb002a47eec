"""What dropout is for: a network that learns wrong labels by heart, and one that does not.

The perceptron of `mnist_mlp`, 512 and 512 hidden units, on 1,000 digits of which a fifth has a
wrong label to train; those to validate and to test are right. 40 epochs of Adam, batches of 32, as
there are few images.
"""

from functools import partial

from fastdrop.studies import mnist_mlp
from fastdrop.studies.study import Defaults

IMAGES, BATCH, LABEL_NOISE = 1000, 32, 0.2

FULL = Defaults(epochs=40, data="digits", label_noise=LABEL_NOISE, threads=1)
QUICK = Defaults(epochs=20, data="digits", label_noise=LABEL_NOISE, threads=1, seeds=(0, 1))

run = partial(mnist_mlp.run, images=IMAGES, batch=BATCH)

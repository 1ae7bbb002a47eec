"""The studies: networks in plain NumPy, trained with fastdrop; ``python -m fastdrop train STUDY``.

`nn` is the network library, `data` reads images, `study` is what all studies share; `checkpoint`
and `files` are how it keeps a run and has a folder to itself. A study is a module named as here,
with ``_`` for ``-``, that has `FULL` and `QUICK`, two `study.Defaults`, and ``run(session)``; the
first is the default. Beside them, `scale` draws the masks of 4,096 ranks.
"""

STUDIES = {
    "wrong-labels": "a fifth of the labels is wrong: learned by heart, unless dropout stops it",
    "mnist-mlp": "a perceptron with and without dropout",
    "rate-sweep": "dropout of the input, the hidden units, all layers, with rates from 0 to 0.8",
    "regularisers": "dropout against, and with, early stopping, weight decay, noise, max-norm, ...",
    "co-adaptation": "features and activations of the first layer, without and with dropout",
    "cifar-cnn": "a convolutional network with and without dropout: where the losses part",
    "variants": "the same networks under every kind of dropout",
    "uncertainty": "how sure Monte Carlo dropout is, of digits and of what is none",
    "lstm": "four kinds of dropout in a recurrent network that learns a text by heart",
    "transformer": "a small language model with and without dropout, and samples of its text",
}

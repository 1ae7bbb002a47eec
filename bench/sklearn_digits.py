"""`DropoutMLPClassifier` beside `MLPClassifier`, as they come: ``python bench/sklearn_digits.py``.

Handwritten digits, split in several ways, each with many seeds, which decide split, weights, order
and masks of both. Differences are seed by seed, with 95 % intervals; CPU time on one thread.
"""

import argparse
import time
import warnings

import numpy as np
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from tabulate import tabulate
from threadpoolctl import threadpool_limits

from fastdrop.adapters.sklearn import DropoutMLPClassifier

X, y = load_digits(return_X_y=True)
PROTOCOLS = {
    "0 to 16, a random quarter to test": (X, {}),
    "0 to 1, a random quarter to test": (X / 16, {}),
    "0 to 1, a fifth of each class to test": (X / 16, {"test_size": 0.2, "stratify": y}),
    "standardised, 1000 to train, 797 to test": (
        StandardScaler().fit_transform(X),
        {"train_size": 1000},
    ),
}


def fitted(kind, split, seed):
    """Accuracy, passes, seconds."""
    x_train, x_test, y_train, y_test = split
    start = time.process_time()
    network = kind(random_state=seed).fit(x_train, y_train)
    seconds = time.process_time() - start
    return network.score(x_test, y_test), network.n_iter_, seconds


def compared(protocol, seeds):
    """What `fitted` gives of both kinds, a row for each seed."""
    inputs, how = PROTOCOLS[protocol]
    found = []
    for seed in seeds:
        split = train_test_split(inputs, y, random_state=seed, **how)
        found.append([fitted(k, split, seed) for k in (MLPClassifier, DropoutMLPClassifier)])
    return np.array(found).transpose(1, 0, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=16)
    seeds = parser.parse_args().seeds
    warnings.simplefilter("ignore", ConvergenceWarning)  # 200 passes, as both have by default
    rows = []
    for name in PROTOCOLS:
        theirs, ours = compared(name, range(seeds))
        difference = ours[:, 0] - theirs[:, 0]
        half = stats.t.ppf(0.975, seeds - 1) * stats.sem(difference)
        means = [f"{a:.4f}, {n:.0f}, {s:.2f}" for a, n, s in (theirs.mean(0), ours.mean(0))]
        rows.append([name, *means, f"{difference.mean():+.4f} ± {half:.4f}"])
    columns = ["accuracy, passes, seconds", "MLPClassifier", "DropoutMLPClassifier", "difference"]
    print(tabulate(rows, columns))


if __name__ == "__main__":
    with threadpool_limits(1):
        main()

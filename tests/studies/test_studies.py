"""The studies as commands: what they write, and what happens when something stops them."""

import io
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import fastdrop as fd
import fastdrop.studies
from fastdrop.__main__ import main
from fastdrop.studies import (
    STUDIES,
    checkpoint,
    co_adaptation,
    data,
    files,
    nn,
    rate_sweep,
    regularisers,
    study,
    transformer,
    uncertainty,
    variants,
)
from fastdrop.studies.data import load
from fastdrop.studies.study import Run, difference, spread

EPOCHS = "--epochs", "3", "--threads", "1"


def no_constant(text):
    raise ValueError(f"{text} is not JSON")


def record(folder):
    return json.loads((folder / "record.json").read_text("utf-8"), parse_constant=no_constant)


def numbers(folder):
    """All that must repeat: every curve and measure but the seconds."""
    found = {}
    for run in record(folder)["runs"]:
        assert run["complete"]
        curves = {k: v for k, v in run["curves"].items() if not k.endswith("seconds")}
        found[run["name"], run["seed"]] = curves, run["measures"]
    return found


def train(folder, *arguments):
    main(["train", *map(str, arguments), "--out", str(folder)])
    return numbers(folder)


def test_mnist_mlp(tmp_path, capsys):
    threads = fd.get_num_threads()
    found = train(tmp_path, "mnist-mlp", "--quick", "--seed", 0, 1, *EPOCHS)
    assert fd.get_num_threads() == threads
    cases = "without dropout", "dropout 0.5"
    assert found.keys() == {(name, seed) for name in cases for seed in (0, 1)}
    for curves, measures in found.values():
        assert len(curves["validation loss"]) == 3
        assert measures["test accuracy"] > 0.8  # chance is 0.1
    shown = capsys.readouterr().out
    for run in record(tmp_path)["runs"]:
        assert (sum(run["curves"]["dropout seconds"]) > 0) == (run["name"] == cases[1])
    for name, sentence in record(tmp_path)["pictures"].items():
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert sentence in shown
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert not list(tmp_path.rglob("*.part"))
    accuracies = [found[cases[0], seed][1]["test accuracy"] for seed in (0, 1)]
    assert spread(accuracies) in shown


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes longer than training."""
    monkeypatch.setattr(study.Session, "picture", lambda *_: None)


def test_all_that_is_shown_names_the_data(tmp_path, capsys, monkeypatch):
    """By default that is MNIST, or, where there is no network, the digits."""
    monkeypatch.setattr(data, "MNIST_SERVERS", ("http://127.0.0.1:9",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = "mnist-mlp", "--seed", 0, 1, "--epochs", 1, "--threads", 1
    train(tmp_path, *one)
    shown = capsys.readouterr()
    assert shown.err.count("MNIST cannot be downloaded") == 1
    assert "as no --data was given, the digits are taken" in shown.err
    name, found = "scikit-learn's digits", record(tmp_path)
    assert found["data"] == name
    assert found["arguments"]["data"] == "digits"
    assert len(found["pictures"]) == 3
    assert all(text.startswith(f"Data: {name}. ") for text in found["pictures"].values())
    assert all(table["title"].endswith(f"; data: {name}") for table in found["tables"])
    assert "mnist" not in shown.out.replace(str(tmp_path), "").lower()
    shown = says(capsys, *one, "--data", "mnist", "--out", tmp_path / "asked")
    assert shown.startswith("MNIST cannot be downloaded to ")
    assert "give --data a folder with its files, or --data digits" in shown


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cifar-cnn", (4, 9), "small has images of 4 x 9, too small .* with 8 x 8 or more"),
        (
            "variants",
            (9, 3),
            "small, 20 % of .* has images of 9 x 3, too small .* with 4 x 4 or more",
        ),
        ("uncertainty", (8, 500), "images of 8 x 500 x 1 have no like in the photographs"),
    ],
)
def test_images_that_do_not_fit_a_study(tmp_path, capsys, name, shape, message):
    folder = tmp_path / "small"
    folder.mkdir()
    for kind, array in (
        ("images", np.zeros((60, *shape), np.uint8)),
        ("labels", np.arange(60, dtype=np.uint8) % 3),
    ):
        header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / f"train-{kind}").write_bytes(header + array.tobytes())
    one = name, "--data", folder, "--seed", 0, "--epochs", 1, "--threads", 1
    assert re.search(message, refused(capsys, *one, "--out", tmp_path / "out"))


@pytest.mark.usefixtures("no_pictures")
def test_train_alone_repeats_with_its_seed(tmp_path, capsys):
    """README's first command; no --data, no network."""
    one = "--epochs", 1, "--threads", 1, "--seed"
    first = train(tmp_path, *one, 3)
    assert first == train(tmp_path, *one, 3)
    other = train(tmp_path, *one, 4)
    assert first["dropout 0.5", 3] != other["dropout 0.5", 4]
    found = record(tmp_path)
    assert found["study"] == "wrong-labels"
    assert found["arguments"]["data"] == "digits"
    assert found["arguments"]["label noise"] == 0.2
    assert found["data"] == "scikit-learn's digits, 20 % of the labels to train wrong"


@pytest.mark.usefixtures("no_pictures")
def test_label_noise_is_an_option(tmp_path, capsys):
    one = "mnist-mlp", "--quick", "--seed", 0, "--epochs", 1, "--threads", 1
    right = train(tmp_path, *one)
    some = train(tmp_path, *one, "--label-noise", 0.5)
    assert record(tmp_path)["data"] == "scikit-learn's digits, 50 % of the labels to train wrong"
    share = "share of the wrong labels that is learned"
    for case, (curves, measures) in some.items():
        assert curves["train accuracy"] < right[case][0]["train accuracy"]
        assert 0 <= measures[share] < 0.5  # after one epoch it knows better than its labels
        assert share not in right[case][1]
    out = tmp_path / "none"
    shown = says(capsys, "transformer", "--label-noise", 0.2, "--out", out)
    assert shown == "transformer takes no --label-noise, as it learns a text: leave it out\n"
    for wrong in (1, -0.1, "nan", "some"):
        shown = refused(capsys, "--label-noise", wrong, "--out", out)
        assert f"must be a number from 0 to below 1, got '{wrong}'" in shown
    train(out, "--label-noise", 0, *ONE)
    assert record(out)["data"] == "scikit-learn's digits"


@pytest.mark.usefixtures("no_pictures")
def test_a_path_is_not_put_on_record(tmp_path):
    """Records are shown to others: they have the data's name."""
    folder = tmp_path / "private" / "numbers"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    for kind, array in ("images", images), ("labels", np.arange(60, dtype=np.uint8) % 3):
        header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / f"train-{kind}").write_bytes(header + array.tobytes())
    train(tmp_path / "out", "--data", folder, "--seed", 0, "--epochs", 1)
    assert record(tmp_path / "out")["arguments"]["data"] == "numbers"
    assert "private" not in (tmp_path / "out" / "record.json").read_text("utf-8")


def pictures(folder):
    """Those on record, each a PNG with a sentence."""
    found = record(folder)["pictures"]
    assert {path.name for path in folder.glob("*.png")} == found.keys()
    for name in found:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    return found


def test_rate_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_sweep, "IMAGES", 384)
    found = train(tmp_path, "rate-sweep", "--quick", *EPOCHS)
    dropped = {(f"{place} {p}", 0) for place in rate_sweep.PLACES for p in (0.2, 0.5, 0.8)}
    assert found.keys() == {("without dropout", 0), *dropped}
    accuracy = {name: measures["test accuracy"] for (name, _), (_, measures) in found.items()}
    assert accuracy["without dropout"] > accuracy["all layers 0.8"] + 0.2
    table, differences, _ = record(tmp_path)["tables"]
    assert table["rows"][2][1] == spread([accuracy["input 0.5"]])
    by = accuracy["input 0.5"] - accuracy["without dropout"]
    assert differences["rows"][1][:2] == [0.5, f"{by:.4f}"]
    assert "with one seed, which has no interval" in pictures(tmp_path)["accuracy.png"]


def test_dropout_is_never_on_the_output():
    digits = load("digits", 0)
    for place, behind in ("input", [0]), ("hidden", [2, 5]), ("all layers", [0, 3, 6]):
        layers = rate_sweep.start(digits, 0.3, place, 0).net.layers[1:]
        found = [k for k, layer in enumerate(layers) if isinstance(layer, fd.layers.Dropout)]
        assert found == behind
        assert {layers[k].p for k in found} == {0.3}
        assert isinstance(layers[-1], nn.Dense)


def test_sweep_says_where_rates_help():
    def trained(name, *values):
        return [Run(name, seed, measures={"test accuracy": v}) for seed, v in enumerate(values)]

    session = study.Session.__new__(study.Session)
    session.runs = trained("without dropout", 0.5, 0.6, 0.7)
    gains = {"input": (0.1, -0.05), "hidden": (0.1, 0.2), "all layers": (-0.1, -0.2)}
    for place, (low, high) in gains.items():
        session.runs += trained(f"{place} 0.2", 0.5 + low, 0.6 + low, 0.7 + low)
        session.runs += trained(f"{place} 0.5", 0.5 + high, 0.61 + high, 0.69 + high)
        session.runs += trained(f"{place} 0.8", 0.1, 0.9, 0.2)
    shown = rate_sweep.findings(session, rate_sweep.QUICK_RATES, "accuracy")
    each = "all rates from 0.2 to 0.5 help: not confirmed (confirmed at 0.2, contradicted at 0.5)"
    best = "best at rate 0.2, higher by 0.1000 [0.1000, 0.1000], against that without"
    assert f"of input: the test accuracy is {best}; that {each}." in shown
    assert (
        "of hidden: the test accuracy is best at rate 0.5, higher by 0.200 [0.175, 0.225]" in shown
    )
    assert shown.count("help: confirmed.") == 1
    assert shown.endswith("help: contradicted.")


def test_regularisers(tmp_path, monkeypatch):
    monkeypatch.setattr(regularisers, "IMAGES", 640)
    found = train(tmp_path, "regularisers", "--quick", "--epochs", 1, "--threads", 1)
    names = [f"{name}{dropout}" for name in regularisers.MEANS for dropout in ("", ", dropout")]
    assert list(found) == [(name, 0) for name in names]
    assert all(measures["test accuracy"] > 0.2 for _, measures in found.values())  # chance is 0.1
    losses = {name: measures["test loss"] for (name, _), (_, measures) in found.items()}
    changed = [name for name in regularisers.MEANS if losses[name] != losses["nothing"]]
    assert changed == list(regularisers.MEANS)[2:]  # one epoch is too early to stop
    table, _, differences = record(tmp_path)["tables"]
    assert [row[2] for row in table["rows"]] == [spread([losses[n]]) for n in names[::2]]
    dropout = losses["nothing, dropout"]
    for (name, against, added), alone in zip(differences["rows"], names[::2], strict=True):
        assert against == f"{dropout - losses[alone]:.4f}"
        assert added == f"{losses[f'{name}, dropout'] - losses[alone]:.4f}"
    assert set(pictures(tmp_path)) == {"test.png", "losses.png"}


@pytest.fixture
def digits():
    return load("digits", 0).part(256, 64)


def test_a_committee_answers_with_the_mean_probability(digits):
    training = regularisers.start(digits, regularisers.MEANS["five networks"], 0.5, 0)
    row = training.epoch(digits, lambda part: None)
    nets = training.net.nets
    assert len({net.parameters["1.W"][0, 0] for net in nets}) == len(nets) == 5
    p = sum(nn.softmax(net.predict(digits.x_valid)) for net in nets) / 5
    right = p[np.arange(64), digits.t_valid]
    assert row["validation loss"] == pytest.approx(-np.log(right).mean(), rel=1e-5)
    assert row["validation accuracy"] == (p.argmax(axis=1) == digits.t_valid).mean()
    assert training.net.dropout_seconds > nets[0].dropout_seconds > 0


def test_max_norm_with_momentum(digits):
    means = replace(regularisers.MEANS["momentum and max-norm"], max_norm=1.0)
    training = regularisers.start(digits, means, 0.0, 0)
    training.epoch(digits, lambda part: None)
    assert isinstance(training.update, nn.SGD)
    assert training.update.step == 8
    weights = [p for p in training.net.parameters.values() if p.ndim == 2]
    norms = np.concatenate([np.linalg.norm(W, axis=0) for W in weights])
    assert norms.max() == pytest.approx(1, rel=1e-5)


def test_regularisers_in_groups():
    session = study.Session.__new__(study.Session)
    session.runs = []
    for k, name in enumerate(regularisers.MEANS):
        for dropout, gain in (("", 0.1 * k - 0.25), (", dropout", 0.1 - 0.1 * k)):
            for seed in range(3):
                measures = {"test accuracy": gain + seed, "test loss": (-1) ** seed * gain}
                session.runs.append(Run(f"{name}{dropout}", seed, measures=measures))
    shown = regularisers.findings(session)
    names = list(regularisers.MEANS)
    alone = f"higher: {', '.join(names[:4])}; lower: {', '.join(names[4:])}."
    added = f"higher: {', '.join(names[:2])}; lower: {', '.join(names[2:])}."
    first, second, *_ = regularisers.AGAINST
    assert f"Test accuracy of {first}: {alone} Test accuracy of {second}: {added}" in shown
    assert f"Test loss of {first}: not clearly different: {', '.join(names)}." in shown
    assert "That momentum and max-norm make dropout better: contradicted, as the test" in shown


def test_co_adaptation(tmp_path, monkeypatch):
    monkeypatch.setattr(co_adaptation, "IMAGES", 384)
    found = train(tmp_path, "co-adaptation", "--quick", *EPOCHS)
    names = [co_adaptation.label(n, p) for n in co_adaptation.NETWORKS for p in (0, 0.5)]
    assert list(found) == [(name, 0) for name in names]
    for _, measures in found.values():
        for kind in "activations", "mean activations":
            assert sum(measures[kind]) == pytest.approx(1)
        assert measures["loss of a half"] > measures["test loss"]
    assert set(pictures(tmp_path)) == {"features.png", "activations.png"}


def test_what_is_measured_of_a_layer(digits):
    """Two units that do the same, one that sees a single pixel, one that is dead."""
    training = co_adaptation.start(digits, "autoencoder", 0.0, 0)
    first, second = (layer for layer in training.net.layers if isinstance(layer, nn.Dense))
    pixel = int(digits.x_train.std(axis=0).argmax())
    first.b[3:], second.W[...] = -1000, 0
    first.W[:, :2], first.W[:, 2], first.W[pixel, 2] = 1, 0, 1
    found = co_adaptation.measure(training, digits)
    x = digits.x_test.reshape(len(digits.x_test), -1)
    active = 2 * (x.sum(axis=1) > 0).mean() + (x[:, pixel] > 0).mean()
    assert found["share active"] == pytest.approx(active / 256)
    assert found["mean activation"] == pytest.approx(
        (2 * x.sum() + x[:, pixel].sum()) / len(x) / 256
    )
    other = np.corrcoef(x.sum(axis=1), x[:, pixel])[0, 1]
    assert found["correlation"] == pytest.approx((1 + 2 * abs(other)) / 3, rel=1e-5)
    assert found["silent"] == pytest.approx(253 / 256)
    assert set(found["most active"][:3]) == {0, 1, 2}
    assert found["extent"] < 0.3  # half of a third of the pixels, or a single one
    assert found["loss of a half"] == found["test loss"]  # the second layer hears none
    assert found["test loss"] == pytest.approx(np.square(x).sum() / len(x))


def test_lstm(tmp_path):
    found = train(tmp_path, "lstm", "--quick", *EPOCHS)
    for curves, _ in found.values():
        before, *_, after = curves["validation loss"]
        assert after < before < 4


def test_transformer(tmp_path, monkeypatch):
    monkeypatch.setattr(transformer, "SAMPLE", 20)
    monkeypatch.setattr(transformer, "read", partial(transformer.read, 6000))
    found = train(tmp_path, "transformer", "--quick", *EPOCHS)
    assert found.keys() == {(name, 0) for name in transformer.CASES}
    for curves, measures in found.values():
        before, *_, after = curves["validation loss"]
        assert after < before < 4
        assert len(measures["sample"]) == len("The ") + 20
        assert measures["sample"].startswith("The ")
    assert_pictures(tmp_path, 1)


def assert_pictures(folder, number):
    """They are there, with a sentence each."""
    pictures = record(folder)["pictures"]
    assert {path.name for path in folder.glob("*.png")} == pictures.keys()
    assert len(pictures) == number
    assert all(len(sentence) > 100 for sentence in pictures.values())


def test_cifar_cnn(tmp_path):
    found = train(tmp_path, "cifar-cnn", "--quick", *EPOCHS)
    assert found.keys() == {("without dropout", 0), ("dropout 0.25", 0)}
    for curves, measures in found.values():
        first, *_, last = curves["train loss"]
        assert last < first
        assert measures["test loss"] < 1.5  # chance is 1.39, but it begins above 2
    assert_pictures(tmp_path, 2)


def test_variants(tmp_path, capsys):
    found = train(tmp_path, "variants", "--quick", "--epochs", 1, "--threads", 1)
    assert len(found) == 18
    for (name, _), (curves, measures) in found.items():
        assert curves["train loss"][0] < np.log(10), name  # chance, from above which it begins
        if "perceptron" in name:
            assert curves["validation accuracy"][0] > 0.5, name
        pruned = measures.get("pruned accuracy", [0.0])
        assert pruned[-1] <= pruned[0]
    learned = {name for (name, _), (curves, _) in found.items() if "rate 2" in curves}
    assert learned == {f"perceptron, {kind}" for kind in ("concrete", "curriculum", "variational")}
    (sparsity,) = found["perceptron, sparse variational", 0][0]["sparsity"]
    assert 0 < sparsity < 1
    assert f"sparsity {sparsity:.2f}" in capsys.readouterr().out
    assert_pictures(tmp_path, 3)


def test_uncertainty(tmp_path, monkeypatch):
    monkeypatch.setattr(uncertainty, "PASSES", 10)
    found = train(tmp_path, "uncertainty", "--quick", *EPOCHS)
    (_, plain), (_, dropped) = found.values()
    sampled = dropped["dropout, Monte Carlo"]
    assert plain.keys() | dropped.keys() == {"without dropout", "dropout, evaluation"} | {
        "dropout, Monte Carlo"
    }
    for measures in (*plain.values(), *dropped.values()):
        upright, *_, turned, _, _, _ = measures["accuracies"]
        assert turned < upright
        assert 0 < measures["calibration error"] < 0.5
        assert measures["sets"]["test images"]["predictive_entropy"]["area"] == 0.5
        assert measures["sets"]["shuffled pixels"]["predictive_entropy"]["area"] > 0.7
    assert min(sampled["information"]) > 0.01
    assert max(plain["without dropout"]["information"]) < 1e-9
    assert_pictures(tmp_path, 3)


COMMAND = "mnist-mlp", "--quick", "--seed", "0", *EPOCHS


def start(folder, *options, first=""):
    """The command in a process of its own, with a checkpoint after each epoch."""
    code = first + (
        "import sys; from fastdrop.studies import study; study.CHECKPOINT_SECONDS = 0; "
        "from fastdrop.__main__ import main; main(sys.argv[1:])"
    )
    arguments = ["train", *COMMAND, "--out", str(folder), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], **pipes)


def stop_at(folder, epochs, how):
    """Start, and send a signal when the second run has so many epochs behind it."""
    with start(folder) as process:
        for _ in range(3000):
            time.sleep(0.01)
            runs = record(folder)["runs"] if (folder / "record.json").exists() else []
            if len(runs) > 1 and len(runs[1]["curves"]["train loss"]) >= epochs:
                break
        process.send_signal(how)
        shown, errors = process.communicate(timeout=60)
    return process.returncode, shown, errors


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The numbers of a run that nothing stops."""
    return train(tmp_path_factory.mktemp("undisturbed"), *COMMAND)


@pytest.mark.usefixtures("no_pictures")
def test_killed_and_resumed_it_ends_with_the_same_numbers(tmp_path, undisturbed, capsys):
    status, *_ = stop_at(tmp_path, 1, signal.SIGKILL)
    assert status == -signal.SIGKILL
    before = record(tmp_path)["runs"]
    assert [run["complete"] for run in before] == [True, False]
    assert "--resume goes on with it" in refused(capsys, *COMMAND, "--out", tmp_path)
    capsys.readouterr()
    assert train(tmp_path, *COMMAND, "--resume") == undisturbed
    bars = capsys.readouterr().err
    assert "without dropout" not in bars  # nothing is done twice
    first_epochs = [run["curves"]["seconds"][0] for run in before]
    after = record(tmp_path)["runs"]
    assert [run["curves"]["seconds"][0] for run in after] == first_epochs


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, undisturbed, how):
    status, _, errors = stop_at(tmp_path, 1, how)
    assert status == 128 + how
    assert "Traceback" not in errors
    assert "interrupted" in errors
    again = shlex.join(["train", *COMMAND, "--out", str(tmp_path), "--resume"])
    assert f"What was done is in {tmp_path}; go on with: python -m fastdrop {again}\n" in errors
    assert train(tmp_path, *COMMAND, "--resume") == undisturbed


# No file may be larger than 1 MB: the first checkpoint is. Not by preexec_fn, where Python
# forks: if an earlier test has imported JAX, that warns.
SMALL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); "


@pytest.mark.usefixtures("no_pictures")
def test_full_disk(tmp_path, undisturbed):
    with start(tmp_path, first=SMALL_DISK) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "0.npz: File too large. What was done is in" in errors
    assert f"What was done is in {tmp_path}" in errors
    assert not list(tmp_path.rglob("*.part"))
    (run,) = record(tmp_path)["runs"]
    assert run["complete"] is False
    assert len(run["curves"]["train loss"]) == 1
    assert train(tmp_path, *COMMAND, "--resume") == undisturbed


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write(path, b"old")

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *map(str, arguments)])
    assert stopped.value.code not in (0, None)
    return capsys.readouterr().err


def says(capsys, *arguments):
    """The one line that a command ends with."""
    capsys.readouterr()
    shown = refused(capsys, *arguments)
    assert shown.count("\n") == 1
    assert shown.endswith("\n")
    return shown


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


ONE = "--threads", 1, "--seed", 0, "--epochs", 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of two runs, of one epoch each."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.Session, "picture", lambda *_: None)
        train(folder, *ONE)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copied")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "synthetic"],
            "was made with data scikit-learn's digits, 20 % of the labels to train wrong: ",
        ),
        (["--threads", 2], "was made with threads 1, now 2: give the same arguments"),
    ],
)
def test_resume_refuses_what_was_trained_otherwise(copied, capsys, arguments, message):
    before = contents(copied)
    assert message in says(capsys, *ONE, *arguments, "--resume", "--out", copied)
    assert contents(copied) == before


@pytest.mark.usefixtures("no_pictures")
def test_more_epochs_go_on_and_fewer_are_refused(copied, tmp_path, capsys):
    one = "--threads", 1, "--seed", 0
    expected = train(tmp_path / "at once", *one, "--epochs", 3)
    first = [run["curves"]["seconds"] for run in record(copied)["runs"]]
    assert train(copied, *one, "--epochs", 3, "--resume") == expected
    assert [run["curves"]["seconds"][:1] for run in record(copied)["runs"]] == first
    before = contents(copied)
    shown = says(capsys, *one, "--epochs", 2, "--resume", "--out", copied)
    assert "without-dropout-0.npz has 3 epochs behind it: give --epochs 3 or more" in shown
    assert contents(copied) == before


@pytest.mark.usefixtures("no_pictures")
def test_a_plan_for_some_epochs_has_no_more(tmp_path, capsys, monkeypatch):
    cases = "perceptron", "perceptron, curriculum"
    monkeypatch.setattr(variants, "CASES", {name: variants.CASES[name] for name in cases})
    for shown in ("tables", "pictures"):
        monkeypatch.setattr(variants, shown, lambda _: None)
    one = "variants", "--quick", "--threads", 1, "--out", tmp_path
    main(["train", *map(str, one), "--epochs", "1"])
    shown = says(capsys, *one, "--epochs", 2, "--resume")
    assert "perceptron-0.npz was made with epochs 1, now 2: give the same arguments" in shown


def changed(change):
    """Of a checkpoint, what is in it, changed."""

    def damage(raw):
        content = checkpoint.loads(raw)
        change(content)
        return checkpoint.dumps(content)

    return damage


W = "net.layers.1.W"


def packed(raw):
    file = io.BytesIO()
    np.savez_compressed(file, **np.load(io.BytesIO(raw)))
    return file.getvalue()


def by_hand(change):
    """Of the JSON in a checkpoint, changed by one who does not know of the digest."""

    def damage(raw):
        arrays = dict(np.load(io.BytesIO(raw)))
        content = json.loads(arrays["json"].tobytes())
        change(content)
        return with_json(json.dumps(content))(raw)

    return damage


def with_objects(raw):
    file = io.BytesIO()
    np.savez(file, json=np.array([Calls()]))
    return file.getvalue()


def with_arrays(**more):
    def damage(raw):
        file = io.BytesIO()
        np.savez(file, **np.load(io.BytesIO(raw)), **more)
        return file.getvalue()

    return damage


def without_array(raw):
    file = io.BytesIO()
    arrays = dict(np.load(io.BytesIO(raw)))
    del arrays["0"]
    np.savez(file, **arrays)
    return file.getvalue()


def with_json(text):
    def damage(raw):
        file = io.BytesIO()
        arrays = dict(np.load(io.BytesIO(raw)))
        np.savez(file, **arrays | {"json": np.frombuffer(text.encode(), np.uint8)})
        return file.getvalue()

    return damage


class Calls:
    def __reduce__(self):
        return print, ("called by a checkpoint",)


DAMAGE = {
    "empty": lambda raw: b"",
    "text": lambda raw: b"no zip at all",
    "pickle": lambda raw: pickle.dumps((None, None)),
    "pickle that calls": lambda raw: pickle.dumps(Calls()),
    "npz that calls": with_objects,
    "cut": lambda raw: raw[: len(raw) // 2],
    "one bit": lambda raw: raw[:5000] + bytes([raw[5000] ^ 4]) + raw[5001:],
    "packed": packed,
    "array too many": with_arrays(more=np.zeros(3)),
    "array too few": without_array,
    "no JSON": with_json("{"),
    "JSON list": with_json("[]"),
    "JSON null": with_json("null"),
    "JSON deep": with_json("[" * 100_000),
    "JSON of two": with_json('{"settings": {}, "state": {}}'),
    "odd reference": with_json('{"array": 3}'),
    "unknown reference": with_json('{"array": ["x", false]}'),
    "no measures": by_hand(lambda c: c.update(measures={})),
    "another curve": by_hand(lambda c: c["curves"].pop("train loss")),
    "no settings": changed(lambda c: c.update(settings=None)),
    "other settings": changed(lambda c: c["settings"].pop("data")),
    "other name": changed(lambda c: c.update(name="another")),
    "other seed": changed(lambda c: c.update(seed=7)),
    "curves a list": changed(lambda c: c.update(curves=[])),
    "no curves": changed(lambda c: c.update(curves={})),
    "empty curves": changed(lambda c: c.update(curves={"loss": []})),
    "curve of text": changed(lambda c: c["curves"].update(loss=["1"])),
    "curves of two lengths": changed(lambda c: c["curves"].update(loss=[1.0, 2.0])),
    "complete a number": changed(lambda c: c.update(complete=1)),
    "state a list": changed(lambda c: c.update(state=[])),
    "number too few": changed(lambda c: c["state"].pop("update.step")),
    "number too many": changed(lambda c: c["state"].update(more=1)),
    "number of text": changed(lambda c: c["state"].update({"update.step": "1"})),
    "number a float": changed(lambda c: c["state"].update({"update.step": 1.0})),
    "weights too few": changed(lambda c: c["state"].pop(W)),
    "weights of float64": changed(lambda c: c["state"].update({W: c["state"][W].astype(float)})),
    "weights transposed": changed(lambda c: c["state"].update({W: c["state"][W].T})),
    "weights of one": changed(lambda c: c["state"].update({W: np.zeros((1, 1), np.float32)})),
    "order of text": changed(lambda c: c["state"]["order"].update(state="x")),
    "another generator": changed(lambda c: c["state"]["order"].update(bit_generator="x")),
    "order too large": changed(lambda c: c["state"]["order"]["state"].update(state=2**200)),
    "order a list": changed(lambda c: c["state"].update(order=[])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint(copied, capsys, damage):
    """One line, no traceback, no code that is run, and nothing else is touched."""
    path = copied / "runs" / "dropout-0.5-0.npz"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    before = contents(copied)
    shown = says(capsys, *ONE, "--resume", "--out", copied)
    assert f"{path} is damaged, or not of this run (" in shown
    assert "): remove it to redo this run" in shown
    assert "called by" not in shown
    assert contents(copied) == before


@pytest.mark.usefixtures("no_pictures")
def test_a_damaged_checkpoint_can_be_removed(copied, finished):
    (copied / "runs" / "dropout-0.5-0.npz").unlink()
    assert train(copied, *ONE, "--resume") == numbers(finished)


def test_pickles_are_not_read(copied, capsys):
    (copied / "runs" / "dropout-0.5-0.pickle").write_bytes(pickle.dumps(Calls()))
    for resume in ([], ["--resume"]):
        shown = says(capsys, *ONE, *resume, "--out", copied)
        assert f"{copied / 'runs'} has pickles" in shown
        assert "remove them or give another --out" in shown


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"finished": '])
def test_a_damaged_record(copied, capsys, text):
    (copied / "record.json").write_text(text)
    before = contents(copied)
    shown = says(capsys, *ONE, "--out", copied)
    assert f"{copied / 'record.json'} is damaged: remove it and go on with --resume" in shown
    assert contents(copied) == before


def test_a_fault_of_the_data_leaves_a_finished_study_alone(copied, tmp_path, capsys):
    (tmp_path / "train-images").write_bytes(b"\0\0\x08\x64")
    (tmp_path / "train-labels").write_bytes(b"")
    before = contents(copied)
    shown = says(capsys, *ONE, "--data", tmp_path, "--out", copied)
    assert f"{tmp_path / 'train-images'} has 100 axes in its header" in shown
    assert contents(copied) == before


def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for a minute")


def test_one_study_at_a_time(tmp_path, capsys):
    """A second process is refused and changes nothing; a killed one leaves no lock."""
    with start(tmp_path, "--epochs", "100000") as first:
        wait_for((tmp_path / "record.json").exists)
        for resume in ([], ["--resume"]):
            with start(tmp_path, *resume) as second:
                _, errors = second.communicate(timeout=60)
            assert second.returncode == 1
            assert f"{tmp_path} is in use by process {first.pid} on " in errors
            assert errors.endswith(": wait until it has ended, or give another --out\n")
            assert errors.count("\n") == 1
        shown = says(capsys, *COMMAND, "--out", tmp_path)  # from this process, too
        assert f"in use by process {first.pid}" in shown
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
    assert "--resume goes on with it" in says(capsys, *COMMAND, "--out", tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_many_at_once_end_as_one(tmp_path, undisturbed):
    """Of six that begin together one gets the folder, and its files are whole."""
    processes = [start(tmp_path) for _ in range(6)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1, 1, 1, 1, 1]
    refusals = [e for p, e in zip(processes, errors, strict=True) if p.returncode]
    assert all("is in use by process" in e and e.count("\n") == 1 for e in refusals)
    assert numbers(tmp_path) == undisturbed
    assert not list(tmp_path.rglob("*.part"))


def test_a_console_of_ascii(tmp_path):
    """What it cannot show is escaped; what is written is whole."""
    command = [sys.executable, "-m", "fastdrop", "train", "--quick", "--epochs", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*command, "--seed", "0", "1", "--out", str(tmp_path / "±")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mean \\xb1 deviation" in done.stdout
    assert f"figures: {tmp_path}" in done.stdout
    assert record(tmp_path / "±")["finished"]
    assert "mean ± deviation" in record(tmp_path / "±")["tables"][0]["title"]


def test_says_what_is_wrong(tmp_path, capsys):
    out = "--out", tmp_path
    assert "has neither IDX files" in refused(capsys, "--data", tmp_path, *out)
    assert "lstm takes no --data" in refused(capsys, "lstm", "--data", tmp_path, *out)
    (tmp_path / "file").touch()
    shown = says(capsys, "--out", tmp_path / "file" / "out")
    assert shown.startswith(f"{tmp_path / 'file' / 'out'}: Not a directory: give an --out that")


@pytest.mark.parametrize(
    "module",
    ["matplotlib.figure", "scipy.stats", "sklearn.datasets", "tabulate", "threadpoolctl", "tqdm"],
)
def test_names_what_is_missing(module, tmp_path, monkeypatch):
    for ours in ("study", "data", "mnist_mlp", "wrong_labels"):
        monkeypatch.delitem(sys.modules, f"fastdrop.studies.{ours}", raising=False)
        monkeypatch.delattr(fastdrop.studies, ours, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    name = module.partition(".")[0]
    with pytest.raises(SystemExit, match=rf"^train needs {name}: pip install 'fastdrop\[demo\]'$"):
        main(["train", "--out", str(tmp_path)])


def test_every_study_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in STUDIES)


def runs(*values):
    return [Run("r", seed, measures={"m": v}) for seed, v in enumerate(values)]


def test_differences_in_words():
    """Against Student's table: t(0.975) is 2.776 for five seeds, 12.706 for two."""
    assert spread([0.5]) == "0.5000"
    assert spread([1, 2, 3], 1) == "2.0 ± 1.0"
    base, gains = np.array([5, 1, 4, 2, 3.0]), np.array([1, 2, 3, 2, 2])
    higher = difference(runs(*(base + gains)), runs(*base), "m")
    half = 2.77645 * np.sqrt(0.5 / 5)
    assert (higher.mean, higher.low, higher.high) == pytest.approx(
        (2, 2 - half, 2 + half), rel=1e-5
    )
    assert str(higher) == "higher by 2.00 [1.12, 2.88]"
    lower = difference(runs(*base), runs(*(base + gains)), "m")
    assert str(lower) == "lower by 2.00 [1.12, 2.88]"
    assert lower.figures == "-2.00 [-2.88, -1.12]"
    unsure = difference(runs(3, 4), runs(1, 1), "m")
    assert unsure.high == pytest.approx(2.5 + 12.7062 * 0.5)
    assert str(unsure) == "different by less than its uncertainty (2.5 [-3.9, 8.9])"
    one = difference(runs(1), runs(3), "m")
    assert str(one) == "lower by 2.0000 with one seed, which has no interval"
    assert one.figures == "-2.0000"
    verdicts = [found.verdict("lower") for found in (lower, higher, unsure, one)]
    assert verdicts == ["confirmed", "contradicted", "not confirmed", "not confirmed"]
    assert study.claim("It helps", lower, "lower", "loss") == (
        "It helps: confirmed, as the loss is lower by 2.00 [1.12, 2.88]."
    )
    equal = difference(runs(1, 2), runs(1, 2), "m")
    assert equal.figures == "0.0000 [0.0000, 0.0000]"
    assert not equal.direction


def test_one_slow_epoch_does_not_count():
    slow = [Run("r", 0, {"seconds": [1.0, 9.0, 1.1]}), Run("r", 1, {"seconds": [1.2, 1.1, 7.0]})]
    assert study.epoch_seconds(slow) == pytest.approx(1.15)


def test_a_run_that_diverged_is_still_json(tmp_path):
    defaults = study.Defaults(epochs=1)
    session = study.Session("mnist-mlp", defaults, tmp_path, data="digits")
    session.runs.append(Run("r", 0, {"loss": [np.inf, np.nan]}, {"a": np.float32(1)}))
    session.record()
    (run,) = record(tmp_path)["runs"]
    assert run["curves"]["loss"] == [None, None]
    assert run["measures"] == {"a": 1.0}

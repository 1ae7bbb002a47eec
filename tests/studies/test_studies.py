"""The studies as commands: what they write, and what happens when something stops them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import fastdrop as fd
import fastdrop.studies
from fastdrop.__main__ import main
from fastdrop.studies import (
    STUDIES,
    co_adaptation,
    files,
    nn,
    rate_sweep,
    regularisers,
    study,
    uncertainty,
)
from fastdrop.studies.data import load
from fastdrop.studies.study import Run, difference, spread

EPOCHS = "--epochs", "3", "--threads", "1"


def no_constant(text):
    raise ValueError(f"{text} is not JSON")


def record(folder):
    return json.loads((folder / "record.json").read_text(), parse_constant=no_constant)


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


@pytest.mark.usefixtures("no_pictures")
def test_train_alone_repeats_with_its_seed(tmp_path):
    """README's first command; no --data, no network."""
    one = "--epochs", 1, "--threads", 1, "--seed"
    first = train(tmp_path, *one, 3)
    assert first == train(tmp_path, *one, 3)
    other = train(tmp_path, *one, 4)
    assert first["dropout 0.5", 3] != other["dropout 0.5", 4]
    assert record(tmp_path)["study"] == "mnist-mlp"
    assert record(tmp_path)["arguments"]["data"] == "digits"


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
    (table,) = record(tmp_path)["tables"]
    assert table["rows"][2][1] == spread([accuracy["input 0.5"]])
    sentences = pictures(tmp_path)
    best = max(accuracy[f"hidden {p}"] if p else accuracy["without dropout"] for p in (0, 0.2, 0.5))
    assert f"({spread([best])}, without" in sentences["accuracy.png"]


def test_dropout_is_never_on_the_output():
    data = load("digits", 0)
    for place, behind in ("input", [0]), ("hidden", [2, 5]), ("all layers", [0, 3, 6]):
        layers = rate_sweep.start(data, 0.3, place, 0).net.layers[1:]
        found = [k for k, layer in enumerate(layers) if isinstance(layer, fd.layers.Dropout)]
        assert found == behind
        assert {layers[k].p for k in found} == {0.3}
        assert isinstance(layers[-1], nn.Dense)


def test_sweep_says_where_rates_help():
    def trained(name, *values):
        return [Run(name, seed, measures={"test accuracy": v}) for seed, v in enumerate(values)]

    session = study.Session.__new__(study.Session)
    session.runs = trained("without dropout", 0.5, 0.6)
    for place in rate_sweep.PLACES:
        helps = place != "input"
        session.runs += trained(f"{place} 0.2", 0.6, 0.7 if helps else 0.6)
        session.runs += trained(f"{place} 0.5", 0.7, 0.8 if helps else 0.5)
        session.runs += trained(f"{place} 0.8", 0.4, 0.9)
    shown = rate_sweep.findings(session, rate_sweep.QUICK_RATES, "accuracy")
    assert "Dropout of hidden: the test accuracy is best at rate 0.5 (0.7500 ± 0.0707" in shown
    assert shown.count("with every seed, at 0.2, 0.5.") == 2
    assert shown.count("with every seed, at no rate.") == 1
    assert shown.endswith("holds for dropout of hidden, all layers only.")


def test_regularisers(tmp_path, monkeypatch):
    monkeypatch.setattr(regularisers, "IMAGES", 640)
    found = train(tmp_path, "regularisers", "--quick", "--epochs", 1, "--threads", 1)
    names = [f"{name}{dropout}" for name in regularisers.MEANS for dropout in ("", ", dropout")]
    assert list(found) == [(name, 0) for name in names]
    assert all(measures["test accuracy"] > 0.2 for _, measures in found.values())  # chance is 0.1
    losses = {name: measures["test loss"] for (name, _), (_, measures) in found.items()}
    changed = [name for name in regularisers.MEANS if losses[name] != losses["nothing"]]
    assert changed == list(regularisers.MEANS)[2:]  # one epoch is too early to stop
    (table,) = record(tmp_path)["tables"]
    assert [row[2] for row in table["rows"]] == [spread([losses[n]]) for n in names[::2]]
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
    assert training.update.step == 2
    weights = [p for p in training.net.parameters.values() if p.ndim == 2]
    norms = np.concatenate([np.linalg.norm(W, axis=0) for W in weights])
    assert norms.max() == pytest.approx(1, rel=1e-5)


def test_differences_in_groups():
    def trained(*values):
        return [Run("r", seed, measures={"test accuracy": v}) for seed, v in enumerate(values)]

    base = trained(0.5, 0.6)
    pairs = {"a": trained(0.6, 0.7), "b": trained(0.4, 0.7), "c": trained(0.9, 0.8)}
    shown = regularisers.grouped({name: (runs, base) for name, runs in pairs.items()})
    assert shown == "higher: a, c; not clearly different: b"


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
def test_interrupted(tmp_path, undisturbed):
    status, _, errors = stop_at(tmp_path, 1, signal.SIGINT)
    assert status == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors
    assert f"What was done is in {tmp_path}; the same command with --resume" in errors
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
    assert "File too large" in errors
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


@pytest.mark.usefixtures("no_pictures")
def test_resume_refuses_what_was_trained_otherwise(tmp_path, capsys):
    one = "--threads", 1, "--seed", 0, "--out", tmp_path
    main(["train", *map(str, one), "--epochs", "1"])
    shown = refused(capsys, *one, "--epochs", 2, "--resume")
    assert "was made with epochs 1, now 2: give the same arguments" in shown
    shown = refused(capsys, "--data", "synthetic", *one, "--epochs", 1, "--resume")
    assert "was made with data scikit-learn's digits: " in shown
    (tmp_path / "runs" / "dropout-0.5-0.pickle").write_bytes(b"\x80\x04torn")
    shown = refused(capsys, *one, "--epochs", 1, "--resume")
    assert "dropout-0.5-0.pickle is damaged" in shown
    assert "remove it to redo this run" in shown


def test_says_what_is_wrong(tmp_path, capsys):
    out = "--out", tmp_path
    assert "has neither IDX files" in refused(capsys, "--data", tmp_path, *out)
    assert "lstm takes no --data" in refused(capsys, "lstm", "--data", tmp_path, *out)
    assert "invalid choice: 'gru'" in refused(capsys, "gru")
    for arguments in (["--epochs", 0], ["--seed", -1], ["--threads", "x"]):
        assert f"argument {arguments[0]}" in refused(capsys, *arguments)
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(capsys, "--out", tmp_path / "file" / "out")


@pytest.mark.parametrize(
    "module", ["matplotlib.figure", "sklearn.datasets", "tabulate", "threadpoolctl", "tqdm"]
)
def test_names_what_is_missing(module, tmp_path, monkeypatch):
    for ours in ("study", "data", "mnist_mlp"):
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
    assert spread([0.5]) == "0.5000"
    assert spread([1, 2, 3], 1) == "2.0 ± 1.0"
    higher = difference(runs(3, 4), runs(1, 1), "m")
    assert higher == "higher by 2.5000 ± 0.7071 with every seed"
    assert difference(runs(1), runs(3), "m").startswith("lower by 2.0000 with one seed")
    assert difference(runs(1, 2), runs(2, 1), "m").startswith("not clearly different")


def test_a_run_that_diverged_is_still_json(tmp_path):
    defaults = study.Defaults(epochs=1)
    session = study.Session("mnist-mlp", defaults, tmp_path, data="digits")
    session.runs.append(Run("r", 0, {"loss": [np.inf, np.nan]}, {"a": np.float32(1)}))
    session.record()
    (run,) = record(tmp_path)["runs"]
    assert run["curves"]["loss"] == [None, None]
    assert run["measures"] == {"a": 1.0}

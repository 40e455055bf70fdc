import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mixco_lightly import Features, ProbeResult, linear_probe

SOLVERS = ["torch", "sklearn"]


def gaussians(n=300, num_classes=6, dim=8, distance=2.0, seed=0):
    """Classes of equal size as Gaussians around means of about that distance."""
    means = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % num_classes
    noise = torch.randn(n, dim, generator=generator)
    return Features(distance / 2**0.5 * means[targets] + noise, targets)


def probe(train, test, solver="torch", **options):
    if solver == "torch":
        options = {"epochs": 30, "batch_size": 64, **options}
    return linear_probe(train, test, solver, **options)


@pytest.mark.parametrize("solver", SOLVERS)
def test_separable_classes_are_all_found(solver):
    train, test = (gaussians(distance=30.0, seed=seed) for seed in (0, 1))
    assert probe(train, test, solver) == ProbeResult(100.0, 100.0, "")


def test_solvers_agree_on_overlapping_classes():
    train, test = gaussians(1200, distance=1.5), gaussians(1200, distance=1.5, seed=1)
    torch_result, sklearn_result = (probe(train, test, solver) for solver in SOLVERS)
    assert 50 < sklearn_result.top1 < 95
    assert torch_result.top1 == pytest.approx(sklearn_result.top1, abs=3)
    assert torch_result.top5 == pytest.approx(sklearn_result.top5, abs=3)
    assert torch_result.top1 < torch_result.top5


@pytest.mark.parametrize("solver", SOLVERS)
def test_random_labels_give_chance(solver):
    generator = torch.Generator().manual_seed(0)
    train, test = (
        Features(torch.randn(1000, 8, generator=generator), torch.arange(1000) % 10)
        for _ in range(2)
    )
    result = probe(train, test, solver)
    # Four standard deviations of a binomial law.
    assert result.top1 == pytest.approx(10, abs=4)
    assert result.top5 == pytest.approx(50, abs=7)


@pytest.mark.parametrize("C", [1.0, 0.001])
def test_sklearn_solver_is_logistic_regression_on_standardised_features(C):
    train, test = gaussians(distance=1.5), gaussians(400, distance=1.5, seed=1)
    train, test = (Features(x * torch.arange(1, 9) + 5, y) for x, y in (train, test))
    scaler = StandardScaler().fit(train.features.numpy())
    classifier = LogisticRegression(C=C, max_iter=1000)
    classifier.fit(scaler.transform(train.features.numpy()), train.targets.numpy())
    scores = classifier.predict_proba(scaler.transform(test.features.numpy()))
    ranked = np.argsort(-scores, axis=1)
    hits = ranked == test.targets.numpy()[:, None]
    result = linear_probe(train, test, solver="sklearn", C=C)
    # A rounding error may turn a single image.
    assert result.top1 == pytest.approx(100 * hits[:, 0].mean(), abs=100 / 400)
    assert result.top5 == pytest.approx(100 * hits[:, :5].any(axis=1).mean(), abs=100 / 400)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("scale", "shift"), [(1000.0, 50.0), (1e-3, -2.0), (1e-8, 0.0)])
def test_scale_and_shift_of_features_do_not_matter(solver, scale, shift):
    train, test = gaussians(distance=1.5), gaussians(400, distance=1.5, seed=1)
    plain = probe(train, test, solver)
    widths = scale * torch.linspace(0.5, 2.0, 8)
    train, test = (Features(x * widths + shift, y) for x, y in (train, test))
    moved = probe(train, test, solver)
    assert moved.top1 == pytest.approx(plain.top1, abs=1)
    assert moved.top5 == pytest.approx(plain.top5, abs=1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("in_train", "in_test"), [(0.0, 0.0), (1000.1, 1000.1), (3.0, 7.0)])
def test_constant_feature_does_no_harm(solver, in_train, in_test):
    train, test = gaussians(distance=1.5), gaussians(400, distance=1.5, seed=1)
    plain = probe(train, test, solver)
    padded = [
        Features(torch.cat([x, torch.full((len(x), 1), value)], dim=1), y)
        for (x, y), value in [(train, in_train), (test, in_test)]
    ]
    assert probe(*padded, solver).top1 == pytest.approx(plain.top1, abs=2)


def test_seed_decides_the_result_whatever_the_global_generator():
    train, test = gaussians(distance=1.0), gaussians(1000, distance=1.0, seed=1)

    def run(seed, global_seed):
        torch.manual_seed(global_seed)
        return probe(train, test, epochs=1, seed=seed)

    assert run(0, global_seed=1) == run(0, global_seed=2)
    assert len({run(seed, global_seed=0) for seed in range(5)}) > 1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_fewer_than_five_classes_are_noted(solver, num_classes):
    train, test = (gaussians(num_classes=num_classes, seed=seed) for seed in (0, 1))
    result = probe(train, test, solver)
    assert result.note == f"top5 is top{num_classes}: {num_classes} classes"
    assert result.top5 == 100
    assert result.top1 < 100


@pytest.mark.parametrize("solver", SOLVERS)
def test_five_classes_need_no_note(solver):
    train, test = (gaussians(num_classes=5, seed=seed) for seed in (0, 1))
    assert probe(train, test, solver).note == ""


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("missing", [0, 2, 5])
def test_class_without_training_images_is_never_found(solver, missing):
    train, test = (gaussians(distance=30.0, seed=seed) for seed in (0, 1))
    rows = train.targets != missing
    result = probe(Features(train.features[rows], train.targets[rows]), test, solver)
    assert result.top1 == pytest.approx(100 * 5 / 6)


def test_lack_of_convergence_is_noted():
    train, test = gaussians(distance=1.0), gaussians(distance=1.0, seed=1)
    assert (
        linear_probe(train, test, "sklearn", max_iter=1).note == "not converged after 1 iterations"
    )


def test_epochs_and_learning_rate_reach_the_torch_solver():
    train, test = gaussians(distance=3.0), gaussians(distance=3.0, seed=1)
    long = probe(train, test, learning_rate=0.1)
    assert probe(train, test, epochs=1, learning_rate=1e-9).top1 < long.top1 - 20


@pytest.mark.parametrize("solver", SOLVERS)
def test_features_are_not_changed(solver):
    train, test = gaussians(), gaussians(seed=1)
    before = [tensor.clone() for part in (train, test) for tensor in part]
    probe(train, test, solver)
    after = [tensor for part in (train, test) for tensor in part]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "svm"}, "got 'svm'"),
        ({"epochs": 0}, "got 0, 256, 1000, 0.1 and 1.0"),
        ({"batch_size": 0}, "got 100, 0, 1000, 0.1 and 1.0"),
        ({"max_iter": 0}, "got 100, 256, 0, 0.1 and 1.0"),
        ({"learning_rate": 0.0}, "got 100, 256, 1000, 0.0 and 1.0"),
        ({"learning_rate": float("nan")}, "got 100, 256, 1000, nan and 1.0"),
        ({"C": -1.0}, "got 100, 256, 1000, 0.1 and -1.0"),
    ],
)
def test_bad_options_are_refused_and_named(options, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(gaussians(30), gaussians(30), **options)


GOOD = gaussians(30)
BAD = [
    (Features(torch.full((30, 8), torch.nan), GOOD.targets), "{} features .* not finite"),
    (Features(torch.full((30, 8), torch.inf), GOOD.targets), "{} features .* not finite"),
    (Features(GOOD.features, GOOD.targets[:-1]), r"{} features .*\(30, 8\) and \(29,\)"),
    (Features(torch.rand(30, 8, 1), GOOD.targets), r"{} features .*\(30, 8, 1\)"),
    (Features(torch.rand(0, 8), torch.zeros(0).long()), r"{} features .*\(0, 8\)"),
    (Features(torch.rand(30, 7), GOOD.targets), "7 dimensions|features 7"),
]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("part", ["training", "test"])
@pytest.mark.parametrize(("bad", "message"), BAD)
def test_features_that_do_not_fit_are_refused(bad, message, part, solver):
    train, test = (bad, GOOD) if part == "training" else (GOOD, bad)
    with pytest.raises(ValueError, match=message.format(part)):
        linear_probe(train, test, solver)


def test_a_single_class_is_refused():
    single = Features(torch.rand(30, 8), torch.ones(30).long())
    with pytest.raises(ValueError, match="all of one class"):
        linear_probe(single, GOOD)


@pytest.mark.parametrize("part", ["training", "test"])
def test_negative_targets_are_refused(part):
    # -1 is what an unlabelled image often has.
    bad = Features(GOOD.features, GOOD.targets - 1)
    train, test = (bad, GOOD) if part == "training" else (GOOD, bad)
    with pytest.raises(ValueError, match="-1"):
        linear_probe(train, test)

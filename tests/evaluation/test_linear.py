import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import nn

from mixco_lightly import Features, ProbeResult, linear_probe
from mixco_lightly.evaluation.linear_choice import hold_out
from mixco_lightly.evaluation.linear_sgd import train_sgd

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
    assert len({run(seed, global_seed=0).top1 for seed in range(5)}) > 1


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


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_not_finite_among_many_is_refused(value):
    features = GOOD.features.clone()
    features[17, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        linear_probe(Features(features, GOOD.targets), GOOD)


def test_features_of_no_dimension_are_refused():
    with pytest.raises(ValueError, match=r"D > 0, got \(30, 0\)"):
        linear_probe(Features(torch.rand(30, 0), GOOD.targets), GOOD)


@pytest.mark.parametrize("solver", SOLVERS)
def test_negative_constant_feature_does_no_harm(solver):
    train, test = gaussians(distance=1.5), gaussians(400, distance=1.5, seed=1)
    plain = probe(train, test, solver)
    padded = [
        Features(torch.cat([x, torch.full((len(x), 1), value)], dim=1), y)
        for (x, y), value in [(train, -3.0), (test, -7.0)]
    ]
    assert probe(*padded, solver).top1 == pytest.approx(plain.top1, abs=2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_features_with_a_gradient_give_the_same(solver):
    train, test = gaussians(distance=1.5), gaussians(distance=1.5, seed=1)
    tracked = Features(train.features.clone().requires_grad_(), train.targets)
    assert probe(tracked, test, solver) == probe(train, test, solver)


# The torch solver's step.


def reference_sgd(features, targets, num_classes, rate, decay, epochs, batch_size, seed):
    """One classifier trained by autograd and torch.optim.SGD, as the probe's definition says."""
    generator = torch.Generator().manual_seed(seed)
    classifier = nn.Linear(features.shape[1], num_classes)
    nn.init.normal_(classifier.weight, std=0.01, generator=generator)
    nn.init.zeros_(classifier.bias)
    classifier.to(features.dtype)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    milestones = [round(0.6 * epochs), round(0.8 * epochs)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for _ in range(epochs):
        for rows in torch.randperm(len(features), generator=generator).split(batch_size):
            loss = nn.functional.cross_entropy(classifier(features[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return classifier.weight.detach(), classifier.bias.detach()


SETTINGS = [
    {"learning_rate": 0.03, "weight_decay": 0.0},
    {"learning_rate": 0.3, "weight_decay": 0.0},
    {"learning_rate": 0.3, "weight_decay": 0.05},
]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("epochs", [1, 3, 10])  # with no, one double and two milestones
@pytest.mark.parametrize("batch_size", [32, 500])  # the last batch has 12; one batch
@pytest.mark.parametrize("settings", [SETTINGS, SETTINGS[:1], SETTINGS[2:]])
def test_closed_form_steps_equal_autograd_and_torch_sgd(settings, batch_size, epochs, dtype, error):
    features, targets = gaussians(300, distance=1.0)
    features = features.to(dtype)
    weights, biases = train_sgd(6, settings, features, targets, None, epochs, batch_size, seed=3)
    assert weights.shape == (len(settings), 6, 8)
    for setting, weight, bias in zip(settings, weights, biases, strict=True):
        expected_weight, expected_bias = reference_sgd(
            features, targets, 6, *setting.values(), epochs, batch_size, seed=3
        )
        torch.testing.assert_close(weight, expected_weight, atol=error, rtol=0)
        torch.testing.assert_close(bias, expected_bias, atol=error, rtol=0)
    # The settings differ by far more than the errors that are allowed.
    assert torch.cdist(weights.flatten(1), weights.flatten(1)).fill_diagonal_(1).min() > 5e-4


def test_training_on_rows_is_training_on_these_features_alone():
    features, targets = gaussians(300, distance=1.0)
    rows = torch.arange(0, 300, 4)
    on_rows = train_sgd(6, SETTINGS, features, targets, rows, 3, 32, seed=0)
    alone = train_sgd(6, SETTINGS, features[rows], targets[rows], None, 3, 32, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(on_rows, alone, strict=True))


# The choice among several values.

GRIDS = [
    ("torch", {"learning_rate": [1e-9, 0.1, 1e-8]}, "learning_rate=0.1, weight_decay=0.0", 3),
    (
        "torch",
        {"weight_decay": (10.0, 0.0), "learning_rate": [0.1, 1e-9]},
        "learning_rate=0.1, weight_decay=0.0",
        4,
    ),
    ("torch", {"learning_rate": np.array([1e-9, 0.5])}, "learning_rate=0.5, weight_decay=0.0", 2),
    ("sklearn", {"C": [1.0, 1e-7]}, "C=1.0", 2),
]


def unequal_gaussians(seed=0):
    """Overlapping classes; the last has half of the features, and so has a strong penalty."""
    features, targets = gaussians(1200, distance=2.5, seed=seed)
    few = (targets == 5) | (torch.arange(1200) % 5 == 0)
    return Features(features[few], targets[few])


@pytest.mark.parametrize(("solver", "grid", "label", "count"), GRIDS)
def test_choice_is_noted_and_its_result_is_that_of_the_chosen_values_alone(
    solver, grid, label, count
):
    train, test = unequal_gaussians(), unequal_gaussians(seed=1)
    result = probe(train, test, solver, **grid)
    assert result.note == f"{label} chosen from {count} on a tenth of the training features"
    chosen = {name: float(value) for name, value in (x.split("=") for x in label.split(", "))}
    assert result[:2] == probe(train, test, solver, **chosen)[:2]
    for name, values in grid.items():
        for value in set(values) - {chosen[name]}:
            assert probe(train, test, solver, **{**chosen, name: value}).top1 < result.top1


@pytest.mark.parametrize(("solver", "grid", "label", "count"), GRIDS)
def test_choice_never_looks_at_the_test_targets(solver, grid, label, count):
    train, test = unequal_gaussians(), unequal_gaussians(seed=1)
    wrong = Features(test.features, (test.targets + 1) % 6)
    result = probe(train, wrong, solver, **grid)
    assert result.note.startswith(f"{label} chosen")
    # On these targets another value is better, so a choice on them would be another one.
    alone = [probe(train, wrong, solver, **{k: v}).top1 for k, vs in grid.items() for v in vs]
    assert max(alone) > result.top1


@pytest.mark.parametrize(
    ("solver", "name", "penalised", "free"),
    [("torch", "weight_decay", 1.0, 0.0), ("sklearn", "C", 0.001, 100.0)],
)
def test_choice_is_by_the_held_out_features_and_not_by_the_fit(solver, name, penalised, free):
    train, test = (gaussians(1000, dim=300, distance=0.17, seed=seed) for seed in (0, 1))
    # Without a penalty so many dimensions fit the training targets by heart.
    fitted = {v: probe(train, train, solver, **{name: v}).top1 for v in (penalised, free)}
    assert fitted[free] == 100 > fitted[penalised]
    result = probe(train, test, solver, **{name: [free, penalised]})
    assert f"{name}={penalised}" in result.note
    assert result.top1 > probe(train, test, solver, **{name: free}).top1 + 3


@pytest.mark.parametrize(
    ("solver", "grid"),
    [
        ("torch", {"learning_rate": [0.2, 0.1]}),
        ("torch", {"weight_decay": [1e-3, 0.0]}),
        ("sklearn", {"C": [3.0, 2.0]}),
    ],
)
def test_of_equals_the_smallest_is_chosen_whatever_the_order(solver, grid):
    train, test = (gaussians(distance=30.0, seed=seed) for seed in (0, 1))
    ((name, values),) = grid.items()
    for order in (values, values[::-1], values * 2):
        note = probe(train, test, solver, **{name: order}).note
        assert f"{name}={min(values)}" in note
        assert "chosen from 2 on" in note


@pytest.mark.parametrize(
    ("solver", "name"), [("torch", "learning_rate"), ("torch", "weight_decay"), ("sklearn", "C")]
)
def test_a_single_value_in_a_list_is_that_value_and_no_choice(solver, name):
    train, test = gaussians(distance=1.0), gaussians(1000, distance=1.0, seed=1)
    alone = probe(train, test, solver, **{name: 0.02})
    assert alone.note == ""
    assert probe(train, test, solver, **{name: [0.02]}) == alone
    assert probe(train, test, solver, **{name: [0.02, 0.02]}) == alone
    assert probe(train, test, solver) != alone


def test_default_weight_decay_is_none():
    train, test = gaussians(distance=1.0), gaussians(1000, distance=1.0, seed=1)
    assert probe(train, test, weight_decay=0) == probe(train, test)


def test_a_classifier_that_diverges_is_an_error_but_never_chosen():
    train, test = gaussians(distance=1.5), gaussians(distance=1.5, seed=1)
    # Nearly all are of class 0, which a NaN also ranks first: the untrained classifier is worse.
    train, test = (
        Features(x, torch.where(torch.arange(len(x)) < 250, 0, y)) for x, y in (train, test)
    )
    with pytest.raises(ValueError, match=r"diverged with learning_rate=1e-09, weight_decay=1e\+30"):
        probe(train, test, learning_rate=1e-9, weight_decay=1e30)
    result = probe(train, test, learning_rate=1e-9, weight_decay=[0.0, 1e30])
    assert result.note.startswith("learning_rate=1e-09, weight_decay=0.0 chosen from 2")
    assert result.top1 < 70


@pytest.mark.parametrize("seed", range(3))
def test_held_out_are_a_tenth_of_each_class_and_each_class_keeps_one(seed):
    sizes = [1, 2, 10, 11, 95, 400]
    shuffled = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(5))
    targets = torch.arange(6).repeat_interleave(torch.tensor(sizes))[shuffled]
    kept, held = hold_out(targets, seed)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(sum(sizes)))
    counts = targets[held].bincount(minlength=6)
    for count, size in zip(counts.tolist(), sizes, strict=True):
        assert abs(count - size / 10) <= 1
        assert count < size
    assert 0.09 * sum(sizes) < len(held) < 0.11 * sum(sizes)


def test_seed_decides_what_is_held_out():
    targets = torch.arange(200) % 4
    assert torch.equal(hold_out(targets, 0)[1], hold_out(targets, 0)[1])
    assert not torch.equal(hold_out(targets, 0)[1], hold_out(targets, 1)[1])
    # scikit-learn's fit has no seed of its own.
    train, test = unequal_gaussians(), unequal_gaussians(seed=1)
    strengths = [0.001, 0.01, 0.1, 1.0]
    notes = {linear_probe(train, test, "sklearn", C=strengths, seed=k).note for k in range(6)}
    assert len(notes) > 1


@pytest.mark.parametrize(("solver", "name"), [("torch", "learning_rate"), ("sklearn", "C")])
def test_two_features_of_a_class_suffice_for_a_choice_and_one_of_each_does_not(solver, name):
    rows = Features(torch.eye(3), torch.tensor([0, 1, 1]))
    assert "chosen from 2" in probe(rows, rows, solver, **{name: [0.1, 0.2]}).note
    rows = Features(torch.eye(3), torch.tensor([0, 1, 2]))
    assert "chosen" not in probe(rows, rows, solver, **{name: 0.1}).note
    with pytest.raises(ValueError, match="two training features"):
        probe(rows, rows, solver, **{name: [0.1, 0.2]})


def penalised_loss(classifier, x, y):
    """What logistic regression minimises."""
    loss = log_loss(y, classifier.predict_proba(x), normalize=False)
    return classifier.C * loss + (classifier.coef_**2).sum() / 2


def test_warm_start_by_rising_C_reaches_the_optimum_of_a_cold_start_in_fewer_steps(monkeypatch):
    train, test = unequal_gaussians(), unequal_gaussians(seed=1)
    strengths = [10.0, 0.01, 1.0, 0.1, 0.03, 0.3, 3.0]
    fits = []
    fit = LogisticRegression.fit

    def fit_and_record(self, x, y):
        fit(self, x, y)
        fits.append((self.C, x, y, penalised_loss(self, x, y), self.n_iter_.sum()))
        return self

    with monkeypatch.context() as patch:
        patch.setattr(LogisticRegression, "fit", fit_and_record)
        linear_probe(train, test, "sklearn", C=strengths)
    *path, final = fits
    assert [fit[0] for fit in path] == sorted(strengths)
    assert len(final[1]) == len(train.features)
    warm_steps = cold_steps = 0
    for C, x, y, loss, steps in path:
        assert len(x) == len(hold_out(train.targets, 0)[0]) < len(train.features)
        cold = LogisticRegression(C=C, max_iter=1000).fit(x, y)
        assert loss == pytest.approx(penalised_loss(cold, x, y), rel=5e-3)
        warm_steps, cold_steps = warm_steps + steps, cold_steps + cold.n_iter_.sum()
    assert warm_steps < cold_steps


def test_lack_of_convergence_is_noted_of_the_candidates_and_of_the_chosen():
    train, test = gaussians(distance=1.0), gaussians(distance=1.0, seed=1)
    # Which C is better after two iterations hangs on scikit-learn's version.
    note = linear_probe(train, test, "sklearn", C=[1e-9, 10.0], max_iter=2).note
    assert "features (C=10.0 not converged after 2 iterations)" in note
    note = linear_probe(train, test, "sklearn", C=[5.0, 10.0], max_iter=2).note
    choice, warning = note.split("; ")
    assert " chosen from 2 on a tenth of the training features (C=5.0 not " in choice
    assert choice.endswith(", C=10.0 not converged after 2 iterations)")
    assert warning == "not converged after 2 iterations"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": []}, r"learning_rate must have at least one value, got \[\]"),
        ({"weight_decay": ()}, r"weight_decay must have at least one value, got \(\)"),
        ({"C": []}, r"C must have at least one value, got \[\]"),
        ({"learning_rate": [0.1, 0.0]}, r"positive, got 100, 256, 1000, \[0.1, 0.0\] and 1.0"),
        ({"learning_rate": [0.1, float("nan")]}, r"got 100, 256, 1000, \[0.1, nan\] and 1.0"),
        ({"C": [1.0, -2.0]}, r"positive, got 100, 256, 1000, 0.1 and \[1.0, -2.0\]"),
        ({"weight_decay": -0.1}, r"weight_decay must not be negative, got -0.1"),
        ({"weight_decay": [0.0, -0.1]}, r"weight_decay must not be negative, got \[0.0, -0.1\]"),
        ({"weight_decay": float("nan")}, "weight_decay must not be negative, got nan"),
    ],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_bad_values_to_choose_from_are_refused_and_named(options, message, solver):
    with pytest.raises(ValueError, match=message):
        linear_probe(GOOD, GOOD, solver, **options)

import pytest

from robustmix import Recipe
from robustmix.trainee import learning_rate


def test_steps_of_the_learning_rate() -> None:
    step = Recipe(epochs=200, lr=0.1)
    assert [learning_rate(step, epoch, 0, 391) for epoch in (0, 99)] == [0.1, 0.1]
    assert learning_rate(step, 100, 0, 391) == pytest.approx(0.01)
    assert learning_rate(step, 149, 390, 391) == pytest.approx(0.01)
    assert learning_rate(step, 150, 0, 391) == pytest.approx(0.001)


def test_milestones_of_imagenet() -> None:
    recipe = Recipe(epochs=90, lr=0.4, milestones="30,60,80", warmup=5, warmup_lr=0.1)
    found = [learning_rate(recipe, epoch, 0, 1252) for epoch in (0, 5, 29, 30, 60, 79, 80)]
    assert found == pytest.approx([0.1, 0.4, 0.4, 0.04, 0.004, 0.004, 0.0004])


def test_the_warm_up_rises_linearly() -> None:
    recipe = Recipe(epochs=90, lr=0.4, warmup=5, warmup_lr=0.1)
    found = [learning_rate(recipe, epoch, step, 10) for epoch in range(5) for step in range(10)]
    assert found == pytest.approx([0.1 + 0.3 * done / 50 for done in range(50)])


def test_the_cosine_ends_at_zero_and_begins_after_the_warm_up() -> None:
    cosine = Recipe(epochs=10, lr=0.1, schedule="cosine")
    assert learning_rate(cosine, 0, 0, 4) == pytest.approx(0.1)
    assert learning_rate(cosine, 5, 0, 4) == pytest.approx(0.05)
    assert 0 < learning_rate(cosine, 9, 3, 4) < 0.001
    warm = Recipe(epochs=10, lr=0.1, schedule="cosine", warmup=2)
    assert learning_rate(warm, 0, 0, 4) == 0
    assert learning_rate(warm, 2, 0, 4) == pytest.approx(0.1)
    assert learning_rate(warm, 6, 0, 4) == pytest.approx(0.05)


def test_constant_is_constant() -> None:
    recipe = Recipe(epochs=10, lr=0.3, schedule="constant")
    assert {learning_rate(recipe, epoch, 3, 7) for epoch in range(10)} == {0.3}

"""The measures against plain loops."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from acge_lightning.continual.forgetting import measures, old_index_recall, stage_means


@pytest.mark.parametrize("tasks", [2, 3, 6])
def test_measures_equal_loops(tasks):
    rng = np.random.default_rng(tasks)
    r, b = rng.random((tasks, tasks)), rng.random(tasks)
    backward = forward = lost = gained = 0.0
    for j in range(tasks - 1):
        backward += (r[tasks - 1][j] - r[j][j]) / (tasks - 1)
        best = r[j][j]
        for i in range(j, tasks - 1):
            best = max(best, r[i][j])
        lost += (best - r[tasks - 1][j]) / (tasks - 1)
    for j in range(1, tasks):
        forward += (r[j - 1][j] - b[j]) / (tasks - 1)
        gained += (r[j][j] - r[j - 1][j]) / (tasks - 1)
    expected = {"gain": gained, "forgetting": lost, "backward_transfer": backward, "forward_transfer": forward}
    found = measures(r, b)
    assert found.pop("mean") == pytest.approx(sum(r[-1]) / tasks)
    assert found == pytest.approx(expected)


def test_one_task_has_a_gain_and_nothing_to_forget():
    found = measures([[0.75]], [0.5])
    assert (found["mean"], found["gain"]) == (0.75, 0.25)
    assert np.isnan([found["forgetting"], found["backward_transfer"], found["forward_transfer"]]).all()


def test_what_was_not_measured_is_not_a_number():
    assert np.isnan(measures([[0.5, 0.1], [np.nan, np.nan]], [0, 0])["forgetting"])
    with pytest.raises(ValueError, match="square"):
        measures([[1.0, 2.0]], [0])


def test_means_of_stages():
    scores = {"one": {"a": 0.25, "b": 0.75, "c": 1.0}, "two": {"a": 0.5, "c": 0.0}}
    found = stage_means(scores, {"x": ["a", "b"], "y": ["c"]})
    np.testing.assert_equal(found, [[0.5, 1.0], [np.nan, 0.0]])


def test_the_recall_of_an_old_index_equals_a_loop():
    made = torch.Generator().manual_seed(0)
    new, old = (normalize(torch.randn(40, 8, generator=made), dim=1) for _ in range(2))
    labels = torch.tensor([[q, d, 1.0] for q in range(6) for d in (6 + 5 * q, 9 + 4 * q)], dtype=torch.double)
    recalls = []
    for query in range(6):
        relevant = {6 + 5 * query, 9 + 4 * query}
        cosines = sorted(((float(new[query] @ old[d]), d) for d in range(6, 40)), reverse=True)
        recalls.append(sum(d in relevant for _, d in cosines[:10]) / len(relevant))
    assert old_index_recall(new, old, labels) == pytest.approx(np.mean(recalls))
    assert old_index_recall(new, old, labels) != pytest.approx(old_index_recall(new, new, labels))

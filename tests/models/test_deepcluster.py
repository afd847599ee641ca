"""DeepCluster clusters a site's embeddings once a round, and its images are told apart by their clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from aiseeme_models.errors import InputError
from aiseeme_models.pretext.deepcluster import DeepCluster, DeepClusterOptions, cluster_logits, spherical_kmeans
from aiseeme_models.seeding import generator


def directions(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=generator(seed)), dim=1)


def blobs(*, count: int, each: int, seed: int) -> torch.Tensor:
    """``count`` groups of ``each`` directions about a common one, group after group."""
    centres = directions(count, 32, seed=seed).repeat_interleave(each, dim=0)
    return F.normalize(centres + 0.05 * directions(count * each, 32, seed=seed + 1), dim=1)


def naive_spherical_kmeans(points, centroids, iterations):
    points, centroids = points.double().numpy(), centroids.double().numpy().copy()
    for _ in range(iterations):
        nearest = [max(range(len(centroids)), key=lambda k: float(point @ centroids[k])) for point in points]
        for k in range(len(centroids)):
            own = [point for point, cluster in zip(points, nearest, strict=True) if cluster == k]
            if own:
                total = np.sum(own, axis=0)
                centroids[k] = total / np.linalg.norm(total)
    return centroids, [max(range(len(centroids)), key=lambda k: float(point @ centroids[k])) for point in points]


@pytest.mark.parametrize(("count", "dim", "clusters"), [(40, 6, 5), (30, 3, 12), (9, 2, 9)])
def test_k_means_equals_the_naive_loops(count, dim, clusters):
    points = directions(count, dim, seed=1)
    begun_at = points[torch.randperm(count, generator=generator(7))[:clusters]]
    centroids, nearest = spherical_kmeans(points, clusters, generator(7), 6)
    expected, expected_nearest = naive_spherical_kmeans(points, begun_at, 6)
    np.testing.assert_allclose(centroids.numpy(), expected, atol=1e-5)
    assert nearest.tolist() == expected_nearest


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_k_means_finds_the_groups_that_scikit_learn_finds_from_the_same_points(seed):
    points = blobs(count=6, each=30, seed=seed)
    begun_at = points[torch.randperm(180, generator=generator(seed))[:6]]
    reference = KMeans(6, init=begun_at.numpy(), n_init=1, max_iter=20).fit(points.numpy())
    _, nearest = spherical_kmeans(points, 6, generator(seed), 20)
    assert adjusted_rand_score(reference.labels_, nearest.numpy()) == 1.0


def test_an_empty_cluster_stays_where_it_is():
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    centroids, _ = spherical_kmeans(points, 4, generator(1), 5)
    torch.testing.assert_close(centroids, points[torch.randperm(4, generator=generator(1))])


def test_the_loss_is_the_cross_entropy_over_the_centroids_in_use(tiny_task, toy_images, augmentation):
    task = tiny_task("deepcluster", clusters=10)
    rows = torch.arange(12)
    task.look_at(rows)
    images, targets = task.views(toy_images(12).pixels, augmentation, generator(1))
    used = task.local.centroids[task.local.centroids.any(dim=1)]
    assert len(used) == 3  # a quarter of the images
    embeddings = F.normalize(task.head(task.backbone(images)), dim=1)
    terms = [
        torch.logsumexp(used @ embedding / 0.1, dim=0) - used[target] @ embedding / 0.1
        for embedding, target in zip(embeddings, targets, strict=True)
    ]
    expected, ours = torch.stack(terms).mean(), task.loss((images, targets), generator(2))
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    weights = list(task.shared.parameters())
    for own, other in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_similarities_are_computed_in_float32_under_autocast_too():
    embeddings, centroids = directions(8, 64, seed=1), directions(5, 64, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = cluster_logits(embeddings, centroids, 0.1)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, cluster_logits(embeddings, centroids, 0.1))


def clustered(task, toy_images, augmentation, *, seen: int = 64) -> torch.Tensor:
    """A task that saw its first ``seen`` images in one round, and began another; the bank that it clusters."""
    for rows in torch.arange(seen).split(16):
        task.look_at(rows)
        views = task.views(toy_images(64).batch(rows), augmentation, generator(1))
        task.loss(views, generator(1))
        task.after_step(views, 0.0)
    task.begin_round()
    return task.local.bank.clone()


def look(task, toy_images, augmentation, rows: torch.Tensor, seed: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    task.look_at(rows)
    images, targets = task.views(toy_images(64).batch(rows), augmentation, generator(seed))
    return images, targets


def test_the_clusters_are_those_of_the_bank_and_stay_for_the_round(tiny_task, toy_images, augmentation):
    task = tiny_task("deepcluster", clusters=8)
    bank = clustered(task, toy_images, augmentation)
    rows = torch.tensor([3, 50, 17, 20])
    images, targets = look(task, toy_images, augmentation, rows)
    centroids = task.local.centroids.clone()
    assert targets.tolist() == (bank[rows] @ centroids.T).argmax(dim=1).repeat_interleave(2).tolist()
    task.loss((images, targets), generator(1))
    task.after_step((images, targets), 0.5)
    assert not torch.equal(task.local.bank, bank)
    _, again = look(task, toy_images, augmentation, rows, seed=5)
    assert torch.equal(again, targets)
    assert torch.equal(task.local.centroids, centroids)


def test_the_row_of_an_image_is_its_last_embedding(tiny_task, toy_images, augmentation):
    task = tiny_task("deepcluster", clusters=8)
    bank = clustered(task, toy_images, augmentation)
    rows = torch.tensor([3, 50])
    views = look(task, toy_images, augmentation, rows)
    task.loss(views, generator(1))
    task.after_step(views, 0.5)
    expected = F.normalize(task.head(task.backbone(views[0][::2])), dim=1)
    torch.testing.assert_close(task.local.bank[rows], expected)
    others = [row for row in range(64) if row not in rows.tolist()]
    assert torch.equal(task.local.bank[others], bank[others])


def test_a_round_that_is_begun_again_has_the_same_clusters(tiny_task, toy_images, augmentation):
    """Loading weights, loading local state and training each begin a round."""
    found = []
    for begins in (1, 3):
        task = tiny_task("deepcluster", clusters=8)
        clustered(task, toy_images, augmentation)
        for _ in range(begins):
            task.begin_round()
        found.append((look(task, toy_images, augmentation, torch.arange(10))[1], task.local.centroids))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def other_views(task, images: torch.Tensor) -> list[int]:
    """The nearest centroid of each view's sibling."""
    used = task.local.centroids[task.local.centroids.any(dim=1)]
    nearest = (F.normalize(task.head(task.backbone(images)), dim=1) @ used.T).argmax(dim=1)
    return [int(nearest[view + 1 - 2 * (view % 2)]) for view in range(len(images))]


def test_images_that_are_held_out_or_not_yet_seen_go_to_the_cluster_of_their_other_view(
    tiny_task, toy_images, augmentation
):
    task = tiny_task("deepcluster", clusters=8)
    bank = clustered(task, toy_images, augmentation, seen=48)
    rows = torch.tensor([3, 60, 61, 20])
    images, targets = look(task, toy_images, augmentation, rows)
    clusters = (bank[rows] @ task.local.centroids.T).argmax(dim=1)
    siblings = other_views(task, images)
    assert targets.tolist() == [*[int(clusters[0])] * 2, *siblings[2:6], *[int(clusters[3])] * 2]

    state = {name: value.clone() for name, value in task.state_dict().items()}
    task.eval()
    task.look_at(None)
    images, targets = task.views(toy_images(64).batch(rows), augmentation, generator(6))
    assert targets.tolist() == other_views(task, images)
    task.loss((images, targets), generator(1))
    task.after_step((images, targets), 0.0)
    assert all(torch.equal(task.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize(("images", "clusters"), [(64, 8), (32, 8), (24, 6), (9, 2), (3, 2)])
def test_a_small_site_has_fewer_clusters(images, clusters, tiny_task, toy_images, augmentation):
    task = tiny_task("deepcluster", clusters=8)
    clustered(task, toy_images, augmentation, seen=images)
    look(task, toy_images, augmentation, torch.arange(3))
    assert int(task.local.centroids.any(dim=1).sum()) == clusters


def test_a_batch_of_one_image_is_refused():
    with pytest.raises(InputError, match="at least 2"):
        DeepCluster.check(DeepClusterOptions(), norm="batch", batch_size=1, image_size=48, channels=3)
    DeepCluster.check(DeepClusterOptions(), norm="batch", batch_size=2, image_size=48, channels=3)

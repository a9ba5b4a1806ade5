import numpy as np

from ki_ros.sim.meshes import reduced_faces


def sphere(rings=40, sectors=80):
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, sectors, endpoint=False))
    points = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)
    index = np.arange(sectors * rings).reshape(sectors, rings)
    a, b = index[:, :-1].ravel(), index[:, 1:].ravel()
    c, d = np.roll(index, -1, 0)[:, 1:].ravel(), np.roll(index, -1, 0)[:, :-1].ravel()
    return points.reshape(-1, 3), np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def area_vectors(vertices, faces):
    return np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]) / 2


def test_a_reduced_sphere_is_still_a_closed_sphere():
    vertices, faces = sphere()
    reduced, source = reduced_faces(vertices, faces, 0.2)
    assert 50 < len(reduced) < len(faces) / 4
    assert len(source) == len(reduced)
    assert reduced.dtype == np.int32
    # Closed: what faces left equals what faces right. Round: its area is nearly that of the sphere.
    areas = area_vectors(vertices, reduced)
    np.testing.assert_allclose(areas.sum(axis=0), 0.0, atol=0.1)
    np.testing.assert_allclose(np.linalg.norm(areas, axis=1).sum(), 4 * np.pi, rtol=0.08)
    # Every face still looks outwards.
    assert np.mean(np.sum(areas * vertices[reduced].mean(axis=1), axis=1) > 0) > 0.99


def test_a_grid_finer_than_the_mesh_changes_nothing():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=float)
    faces = np.array([[0, 1, 2], [1, 3, 2]])
    reduced, source = reduced_faces(vertices, faces, 0.01)
    np.testing.assert_array_equal(reduced, faces)
    np.testing.assert_array_equal(source, [0, 1])


def test_both_sides_of_a_sheet_stay():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=float)
    reduced, _ = reduced_faces(vertices, np.array([[0, 1, 2], [0, 2, 1], [1, 2, 0]]), 0.01)
    assert len(reduced) == 2

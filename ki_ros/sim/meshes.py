"""Coarser meshes for the pictures: a robot's CAD meshes have more triangles than a small picture has pixels."""

from __future__ import annotations

import numpy as np


def reduced_faces(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Faces that are left when vertices closer than about `cell` are merged.

    vertices: (N, 3) float [m]. faces: (M, 3) integer. cell: edge of the merging grid [m], positive.
    Returns the remaining faces (K, 3) int32, which index the same vertices (each cell keeps the vertex nearest to
    its mean), and the index of the face that each comes from, (K,).
    """
    keys = np.floor(vertices / cell).astype(np.int64)
    keys -= keys.min(axis=0)
    span = keys.max(axis=0) + 1
    _, cluster = np.unique((keys[:, 0] * span[1] + keys[:, 1]) * span[2] + keys[:, 2], return_inverse=True)
    count = np.bincount(cluster)
    mean = np.stack([np.bincount(cluster, weights=vertices[:, axis]) / count for axis in range(3)], axis=1)
    order = np.lexsort((np.linalg.norm(vertices - mean[cluster], axis=1), cluster))
    representative = order[np.searchsorted(cluster[order], np.arange(len(count)))]

    merged = representative[cluster[faces]]
    proper = np.flatnonzero(
        (merged[:, 0] != merged[:, 1]) & (merged[:, 1] != merged[:, 2]) & (merged[:, 2] != merged[:, 0])
    )
    # Two faces with the same three corners but opposite winding are the two sides of a thin sheet: both stay.
    corners = merged[proper]
    turn = np.argmin(corners, axis=1)
    canonical = np.take_along_axis(corners, (turn[:, None] + np.arange(3)) % 3, axis=1)
    _, first = np.unique(canonical, axis=0, return_index=True)
    source = proper[np.sort(first)]
    return merged[source].astype(np.int32), source


def reduce_meshes(model, cell_of_mesh) -> int:
    """Merges close vertices of a compiled model's meshes in place, for drawing only; returns the faces that are left.

    model: mujoco.MjModel that is used for nothing but drawing: rays and distances would see stale hierarchies.
    cell_of_mesh: function of a mesh's name that returns its merging grid [m], or 0 to leave the mesh as it is.
    """
    for mesh in range(model.nmesh):
        cell = cell_of_mesh(model.mesh(mesh).name)
        if cell <= 0:
            continue
        vertex = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
        face = slice(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh])
        faces, source = reduced_faces(model.mesh_vert[vertex].astype(np.float64), model.mesh_face[face], cell)
        normals = model.mesh_facenormal[face][source]
        begin = model.mesh_faceadr[mesh]
        model.mesh_face[begin : begin + len(faces)] = faces
        model.mesh_facenormal[begin : begin + len(faces)] = normals
        model.mesh_facenum[mesh] = len(faces)
    return int(model.mesh_facenum.sum())

"""The SinGAN demo up to its trainings: one photograph a set, settings that fit it, pictures put together."""

import numpy as np

from pipeline import demo_singan
from pipeline.data.manifest import load_manifest
from pipeline.run import read_run


def test_each_photograph_is_a_set_of_its_own_and_each_run_ends_with_its_last_stage(tmp_path):
    for photo in demo_singan.PHOTOGRAPHS:
        data = demo_singan._one_image_set(tmp_path, photo)
        assert load_manifest(data).count == 1
        folders = {demo_singan._plan(tmp_path, data, photo, recipe, []) for recipe in demo_singan.VARIANTS}
        assert len(folders) == len(demo_singan.VARIANTS)
        for folder in folders:
            run = read_run(folder)
            assert run.family.sizes() == ((16, 24), (21, 32), (28, 42), (37, 56))
            assert run.total_kimg == 4 * run.family.stage_kimg
            assert (run.batch_size, run.data.mirror) == (1, False)


def test_pictures_stand_beside_and_below_each_other_on_white():
    a, b = np.zeros((2, 3, 3), np.uint8), np.full((4, 5, 3), 7, np.uint8)
    row, column = demo_singan._stack([a, b], axis=1), demo_singan._stack([a, b], axis=0)
    gap = demo_singan.GAP_PX
    assert row.shape == (4, 3 + gap + 5, 3)
    assert column.shape == (2 + gap + 4, 5, 3)
    assert np.array_equal(row[:2, :3], a)
    assert np.array_equal(row[:, 3 + gap :], b)
    assert (row[2:, :3] == 255).all()
    assert (row[:, 3 : 3 + gap] == 255).all()
    assert np.array_equal(column[2 + gap :], b)

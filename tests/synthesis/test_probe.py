"""The padding probe: constants in, frozen borders or one colour out."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.spec import UserError
from pipeline.synthesis.probe import VALUES, constant_head, padding_probe, spread
from pipeline.synthesis.sample import generate
from tests.runs import CIPS


@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_a_constant_head_makes_one_colour_without_padding_and_borders_with_it(generator, size):
    """Padding is no parameter: both generators have the same weights."""
    padded = generator().cfg.replace(block="up_conv")
    for cfg, is_one_colour in ((padded, False), (padded.replace(padding="none"), True)):
        G = cfg.build()
        G.load_state_dict(generator().state_dict())
        images = padding_probe(G, VALUES, size)
        assert images.shape == (5, 3, *size)
        for value, img in zip(VALUES, images, strict=True):
            found = spread(img)
            assert (found.interior < 1e-12) == (found.border < 1e-12) == is_one_colour, (value, found)
            assert is_one_colour or found.border > 1e-3
        assert not torch.equal(images[0], images[4])
    code = generator().head(size)
    assert code.amax() > code.amin()  # so that a probe which left it there would be seen


def test_each_value_is_what_enters_the_first_convolution_and_the_code_is_back_afterwards(generator):
    G = generator()
    before, code = generate(G, [1]), G.head((16, 24))
    seen = []
    hook = G.convs[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    padding_probe(G, (-0.5, 0.25), (16, 24))
    hook.remove()
    assert [(x.shape[1:], x.unique().tolist()) for x in seen] == [(code.shape, [-0.5]), (code.shape, [0.25])]
    assert torch.equal(G.head((16, 24)), code)
    assert (generate(G, [1]) == before).all()
    with pytest.raises(ZeroDivisionError), constant_head(G, 1.0):
        raise ZeroDivisionError
    assert torch.equal(G.head((16, 24)), code)


def test_the_probe_is_a_function_of_weights_size_and_seed(generator):
    a, b = (padding_probe(generator(), VALUES, (16, 16), seed=3) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, padding_probe(generator(), VALUES, (16, 16), seed=4))


def test_spread_separates_the_border_from_what_is_inside():
    frame = F.pad(torch.zeros(3, 12, 28), (2, 2, 2, 2), value=0.5)
    assert (spread(frame).interior, spread(frame).border) == (0.0, 0.25)
    inner = torch.full((3, 16, 32), 0.0)
    inner[:, 8, 16] = 1.0
    share = 1 / (12 * 28)
    assert spread(inner).interior == pytest.approx(share * (1 - share))
    assert spread(inner).border == pytest.approx(share**2)


def test_a_generator_without_a_head_and_a_size_it_cannot_make_are_refused_in_one_line(generator):
    with pytest.raises(UserError, match=r"CIPSGenerator has no code at its head .*kind='mspie'"):
        padding_probe(generator(CIPS))
    with pytest.raises(UserError, match="multiples of 4"):
        padding_probe(generator(), VALUES, (17, 16))

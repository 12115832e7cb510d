"""What decides a claim: intervals, margins, and what must not undo a verdict."""
import math

import numpy as np, pytest
from lth_nb.claims import AGREEING, MATTERS, Verdict, decide, mean_interval, together, within


def test_a_skewed_size_on_a_logarithmic_scale():
    "Three barriers far above 2 points: Student's interval on points includes 2."
    barriers = [14, 14, 25]
    assert decide(barriers, 2, below=False).holds is None
    verdict = decide(barriers, 2, below=False, log=.5)
    assert verdict.holds
    assert verdict.effect == pytest.approx(np.exp(np.log(np.array(barriers) + .5).mean()) - .5)
    with pytest.raises(ValueError, match=r'log=0.5: should lift -3.0 over 0'): mean_interval([-3, 1], log=.5)


@pytest.mark.parametrize('below', (True, False))
def test_nothing_is_refuted_at_a_threshold_of_0(below):
    "It takes what matters besides; in a unit of which nobody has said what that is, nothing does."
    sign = 1 if below else -1
    little, much = (sign*np.array([size, size + .01, size - .01]) for size in (.1, 3))
    assert decide(little, 0, below=below).holds is None
    assert decide(much, 0, below=below).holds is False
    assert decide(much, 0, below=below, unit='of sparsity').holds is None
    assert decide(-little, 0, below=below).holds is True
    assert MATTERS['points'] == .5


def test_a_margin():
    samples = [2.2, 2.21, 2.19]
    assert decide(samples, 2).holds is False
    assert decide(samples, 2, margin=.5).holds is None


@pytest.mark.parametrize('outlier', (30, 1000, 1e6))
def test_one_more_that_agrees_undoes_nothing(outlier):
    samples = [5, 6, 5, 6, 5, 6]
    assert decide(samples, 2, below=False).holds
    assert decide([*samples, outlier], 2, below=False).holds
    assert decide([*samples, -outlier], 2, below=False).holds is None   # it does not agree


def test_a_few_that_agree_need_their_interval():
    assert AGREEING == 6
    assert decide([5, 6, 5, 6, 1000], 2, below=False).holds is None


def test_within_has_no_opinion_on_a_single_sample():
    assert within([.1], 1).holds is None


def test_the_part_that_decides_is_named_first():
    yes, no = Verdict(True, 1.), Verdict(False, 2.)
    verdict = together({'a': yes, 'b': no})
    assert verdict.holds is False and verdict.why.startswith('b: no')
    assert math.isclose(verdict.effect, 2)

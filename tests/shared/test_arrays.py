"""Arrays: the filter whose slow reference is scipy's."""

import numpy as np
import pytest
from scipy.signal import savgol_filter

from shared.arrays import savgol


@pytest.mark.parametrize(("count", "window"), [(5, 5), (8, 5), (40, 5), (40, 9)])
def test_savgol_is_that_of_scipy(count, window):
    values = np.random.default_rng(0).normal(size=(count, 4, 3)).cumsum(0)
    assert np.abs(savgol(values, window) - savgol_filter(values, window, 2, axis=0)).max() < 1e-12
    single = values.astype(np.float32)
    assert savgol(single, window).dtype == np.float32
    np.testing.assert_allclose(savgol(single, window), savgol_filter(single, window, 2, axis=0), rtol=1e-6, atol=2e-6)
    assert np.abs(savgol(values[:, 0, 0], window) - savgol_filter(values[:, 0, 0], window, 2)).max() < 1e-12

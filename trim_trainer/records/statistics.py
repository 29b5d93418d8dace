"""Confidence intervals: how sure a measured figure is."""

import math
import statistics


def wilson_interval(share: float, number: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share of `number` examples (Wilson, 1927)."""
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def students_t(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % confidence interval by Student's t; of one value both ends are the value."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, mean, mean
    from scipy import stats  # half a second to import, and only comparisons need it

    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Median and 95 % confidence interval by the sign test, whatever the values are distributed like.

    The ends are values themselves, as many places from the outermost as the binomial distribution allows: none up to 8
    values, 3 of 15, 9 of 31. Fewer than 6 values have no such interval, the ends are the outermost of them.
    """
    ordered, number = sorted(values), len(values)
    outside, cut = 0.0, -1  # so many at each end are left out
    while (outside := outside + math.comb(number, cut + 1) / 2**number) <= 0.025:
        cut += 1
    cut = max(cut, 0)
    return statistics.median(ordered), ordered[cut], ordered[number - 1 - cut]

"""The vote: which kernels a run goes on with where several were found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from selfdeblur.classical import deconvolve
from selfdeblur.classical.judge import clearly_better, least_bad
from selfdeblur.classical.quality import PLAINLY_WRONG, disagreement


@dataclass(frozen=True)
class Choice:
    """What `vote` chose.

    Attributes
    ----------
    kernels : tuple of tensor (h, w)
        One or two kernels to go on with.
    images : tuple of tensor (H + h - 1, W + w - 1)
        The blurry image deconvolved with each of them.
    disagreement : float
        `selfdeblur.classical.quality.disagreement` of the two opinions that are left.
    estimate : tensor (h, w) or None
        What another search found, where it takes the estimate's place.
    reason : str
        The row of the decision table, in words.
    """

    kernels: tuple[Tensor, ...]
    images: tuple[Tensor, ...]
    disagreement: float
    estimate: Tensor | None
    reason: str


class _Opinion(NamedTuple):
    """A kernel, and the image deconvolved with it."""

    kernel: Tensor
    image: Tensor


def vote(
    y: Tensor,
    estimate: Tensor,
    check: Tensor,
    rival: Tensor | None = None,
    *,
    doubt: float,
    search_again: Callable[[], Tensor],
) -> Choice:
    """Choose the kernels to go on with. Nothing that is handed in is changed.

    Two kernels agree if the `disagreement` of their images is at most
    ``doubt``, and are far from each other from PLAINLY_WRONG on. The estimate
    may be wrong, and with it the check, which started at it; the rival did not
    start there. So where these differ the kernel is searched for again.

    The first row that holds decides:

    === =================== ================ ==================================== ============== ============ =========
    row estimate and check  check and rival  the new search                       go on with     disagreement new
                                                                                                 of           estimate
    === =================== ================ ==================================== ============== ============ =========
    1   disagree            agree            not made                             check          check, rival no
    2   agree               not far, or none not made                             estimate,      estimate,    no
                                                                                  check          check
    3   any                 far              not far from the rival, nor farther  new, rival     check, rival yes
                                             than from the check
    4   any                 far, and rival   any                                  rival          check, rival no
                            clearly better
    5   agree               far              not far from the check               estimate,      estimate,    no
                                                                                  check          check
    6   agree               far              agrees with the estimate, or neither estimate,      new, check   no
                                             agrees with the check nor is better  check
                                             than the estimate
    7   disagree            do not agree, or as in row 6                          check          estimate,    no
                            none                                                                 check
    8   any                 any              does not agree with the check        new            new, check   yes
    9   any                 any              better than the estimate             new, check     new, check   yes
    10  any                 any              no better than the estimate          new, check     estimate,    yes
                                                                                                 check
    === =================== ================ ==================================== ============== ============ =========

    Parameters
    ----------
    y : tensor (H, W)
        Blurry image, 0..1.
    estimate, check, rival : tensor (h, w)
        Kernels in correlation sense: of the search, of the fit that started at
        it and, if there is one, of a fit that knows nothing of either.
    doubt : float
        See above.
    search_again : callable
        Gives the kernel (h, w) of another search, of the type and device of
        y; called at most once.

    Returns
    -------
    Choice
    """

    def opinion(kernel):
        return _Opinion(kernel, deconvolve(y, kernel))

    def differ(one, two):
        return disagreement(y, one.image, two.image, check.shape)

    def choice(opinions, left, reason, new=None):
        kernels, images = zip(*opinions, strict=True)
        return Choice(kernels, images, left, None if new is None else new.kernel, reason)

    old, fitted = opinion(estimate), opinion(check)
    apart = differ(old, fitted)
    agreed = apart <= doubt
    far = False
    if rival is not None:
        other = opinion(rival)
        from_other = differ(fitted, other)
        far = from_other > PLAINLY_WRONG
        if from_other <= doubt and not agreed:
            return choice([fitted], from_other, "check and rival agree against the estimate")
    if agreed and not far:
        return choice([old, fitted], apart, "estimate and check agree")

    new = opinion(search_again())
    from_new = differ(new, fitted)
    if far:
        if differ(new, other) <= min(PLAINLY_WRONG, from_new):
            return choice([new, other], from_other, "another search is with the rival, far from the check", new)
        if clearly_better(y, rival, check):
            return choice([other], from_other, "the rival explains y clearly better than the check")
        if agreed and from_new <= PLAINLY_WRONG:
            return choice([old, fitted], apart, "estimate, check and another search stand against the rival")
    better = least_bad(y, torch.stack([estimate, new.kernel])) == 1
    new_agrees = from_new <= doubt
    if differ(old, new) <= doubt or not (better or new_agrees):
        if agreed:
            return choice([old, fitted], from_new, "estimate and check agree, another search found nothing better")
        return choice([fitted], apart, "estimate and check disagree, another search found nothing better")
    if not new_agrees:
        return choice([new], from_new, "another search explains y better than the estimate, no other agrees", new)
    if better:
        return choice([new, fitted], from_new, "another search explains y better and agrees with the check", new)
    return choice([new, fitted], apart, "another search agrees with the check, but explains y no better", new)

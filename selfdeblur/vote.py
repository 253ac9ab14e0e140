"""The vote: which kernels a run goes on with where several were found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from selfdeblur.classical.judge import clearly_better
from selfdeblur.classical.quality import disagreement


@dataclass(frozen=True)
class Choice:
    """What `vote` chose.

    Attributes
    ----------
    kernels : tuple of tensor (h, w)
        One or two kernels to go on with.
    disagreement : float
        `selfdeblur.classical.quality.disagreement` of the two opinions that are left.
    estimate : tensor (h, w) or None
        What another search found, where it takes the estimate's place.
    reason : str
        The row of the decision table, in words.
    """

    kernels: tuple[Tensor, ...]
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
    *,
    doubt: float,
    confirmed: float = 0.0,
    deconvolved: Callable[[Tensor], Tensor],
    search_again: Callable[[], Tensor],
) -> Choice:
    """Choose the kernels to go on with. Nothing that is handed in is changed.

    Two kernels agree if the `disagreement` of their images is at most
    ``doubt``. Below ``confirmed`` the check confirms the estimate, and what
    still differs is the error of the networks. Where the two disagree the
    kernel is searched for again. The new one is better if it explains y
    `clearly_better`; less says nothing of two searches.

    The first row that holds decides:

    === =================== =========================================== =============== =============== ========
    row estimate and check  the new search                              go on with      disagreement of new
                                                                                                        estimate
    === =================== =========================================== =============== =============== ========
    1   agree closely       not made                                    estimate        estimate, check no
    2   agree               not made                                    estimate, check estimate, check no
    3   disagree            agrees with the estimate, or neither agrees check           estimate, check no
                            with the check nor is better than the
                            estimate
    4   disagree            does not agree with the check               new             new, check      yes
    5   disagree            better than the estimate                    new, check      new, check      yes
    6   disagree            no better than the estimate                 new, check      estimate, check yes
    === =================== =========================================== =============== =============== ========

    Parameters
    ----------
    y : tensor (H, W)
        Blurry image, 0..1.
    estimate, check : tensor (h, w)
        Kernels in correlation sense: of the search, and of the fit that started at it.
    doubt, confirmed : float
        See above.
    deconvolved : callable
        Gives y deconvolved with a kernel, a tensor (H + h - 1, W + w - 1).
    search_again : callable
        Gives the kernel (h, w) of another search, of the type and device of
        y; called at most once.

    Returns
    -------
    Choice
    """

    def opinion(kernel):
        return _Opinion(kernel, deconvolved(kernel))

    def differ(one, two):
        return disagreement(y, one.image, two.image, check.shape)

    def choice(opinions, left, reason, new=None):
        kernels = tuple(opinion.kernel for opinion in opinions)
        return Choice(kernels, left, None if new is None else new.kernel, reason)

    old, fitted = opinion(estimate), opinion(check)
    apart = differ(old, fitted)
    if apart < confirmed:
        return choice([old], apart, "the check confirms the estimate")
    if apart <= doubt:
        return choice([old, fitted], apart, "estimate and check agree")

    new = opinion(search_again())
    from_new = differ(new, fitted)
    better = clearly_better(y, new.kernel, estimate)
    new_agrees = from_new <= doubt
    if differ(old, new) <= doubt or not (better or new_agrees):
        return choice([fitted], apart, "estimate and check disagree, another search found nothing better")
    if not new_agrees:
        return choice([new], from_new, "another search explains y better than the estimate, no other agrees", new)
    if better:
        return choice([new, fitted], from_new, "another search explains y better and agrees with the check", new)
    return choice([new, fitted], apart, "another search agrees with the check, but explains y no better", new)

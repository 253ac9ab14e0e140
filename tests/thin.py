"""Fits and searches of little arithmetic, for tests of what goes on around them."""

CHANNELS = (8, 8)
STARTS = 1


def make_thin(replace=setattr):
    """Give every generator of images two scales of few channels, and every search for a kernel one start.

    ``replace(object, name, value)`` sets an attribute.
    """
    from selfdeblur.settings import Settings

    check = Settings.__post_init__

    def post_init(settings):
        object.__setattr__(settings, "channels", CHANNELS)
        check(settings)

    replace(Settings, "__post_init__", post_init)
    make_searches_short(replace)


def make_searches_short(replace=setattr):
    """Give every search for a kernel one start."""
    from selfdeblur.classical import estimate_kernel

    replace(estimate_kernel, "__kwdefaults__", estimate_kernel.__kwdefaults__ | {"starts": STARTS})

"""Fuzzing with hypothesis: whole files, changed at random. FUZZ_EXAMPLES sets how long."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", 200)), deadline=None, suppress_health_check=list(HealthCheck)
)
# Where, what is put there, how many bytes are taken out.
EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 6)), max_size=6)


def edit(content, edits):
    content = bytearray(content)
    for place, insert, delete in edits:
        at = int(place**2 * len(content))  # more of them in the header
        content[at : at + delete] = insert
    return bytes(content)

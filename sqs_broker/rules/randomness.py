"""The broker's own source of random numbers, for pauses and ids; not for secrets."""

import os
from random import Random

#: Not the one that all of a program shares: a program that seeds that one, so that it can repeat
#: what it did, would not expect another thread to take numbers from it.
RANDOM = Random()

os.register_at_fork(after_in_child=RANDOM.seed)

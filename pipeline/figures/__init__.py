"""The pictures on lineage cards."""

import logging

# Before it is imported: it warns of a home that it cannot keep its cache of fonts in, which costs a second and no more.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

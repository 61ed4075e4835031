"""Artifacts: what stages make, named after how it was made, each with its lineage."""

import signal
import sys

# `python -m artifacts`, interrupted before it begins, ends at once, as kernels/interrupts.py has it for other commands:
# this package knows of no other.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from artifacts.artifact import Artifact as Artifact
from artifacts.cards import lineage_card as lineage_card
from artifacts.cards import mermaid as mermaid
from artifacts.errors import ArtifactError as ArtifactError
from artifacts.fingerprint import canonical_json as canonical_json
from artifacts.fingerprint import fingerprint as fingerprint
from artifacts.fingerprint import sha256_of_bytes as sha256_of_bytes
from artifacts.fingerprint import sha256_of_file as sha256_of_file
from artifacts.lineage import ArtifactId as ArtifactId
from artifacts.lineage import Circumstance as Circumstance
from artifacts.lineage import InputRef as InputRef
from artifacts.lineage import Lineage as Lineage
from artifacts.lineage import Recipe as Recipe
from artifacts.lineage import code_of_process as code_of_process
from artifacts.lineage import code_state as code_state
from artifacts.manifest import Manifest as Manifest
from artifacts.store import Listing as Listing
from artifacts.store import Store as Store
from artifacts.terminal import CommandParser as CommandParser
from artifacts.terminal import as_command as as_command
from artifacts.terminal import for_stdout as for_stdout
from artifacts.terminal import show_every_text as show_every_text
from artifacts.terminal import store_folder as store_folder
from artifacts.terminal import told as told
from artifacts.terminal import writing_to_stdout as writing_to_stdout
from artifacts.verification import Damage as Damage

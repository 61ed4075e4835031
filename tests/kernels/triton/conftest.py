"""Turns Triton's interpreter on, which is chosen where Triton is first imported; TRITON_INTERPRET=0 takes the GPU."""

import os
import sys

if "TRITON_INTERPRET" not in os.environ:
    assert "triton" not in sys.modules, "something imported triton before its interpreter could be chosen"
    os.environ["TRITON_INTERPRET"] = "1"

"""What a pair is, from what the tests say of it; the table is that of docs/methods/superposition.md."""

from dataclasses import dataclass

NOT_TESTABLE = "not testable"
INDEPENDENT = "independent"
COMPOSITIONAL = "compositional"
REDUNDANT = "redundant"
JOINT_CODE = "joint code"
JOINT_CODE_READABLE = "joint code, readable"
JOINT_CODE_HIDDEN = "joint code, hidden"
ANTAGONIST = "antagonist"
HIDDEN = "hidden function"

FUSED_SHARE = 0.5
"""Of the tokens of either expert that are both's, from which on two that never part are fused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Of one pair; None is what was not, or could not be, tested."""

    significant: bool
    """T1: co-active more often than chance."""
    joint_code: bool | None = None
    """T4."""
    alike: bool = False
    """T4: either alone says what both say."""
    never_part: bool = False
    """One fires alone too seldom to be tested, and most tokens of either are both's."""
    hidden: bool | None = None
    """T2: the output with both isn't the sum of what each adds, so far that another token wins."""
    curvature: bool = False
    """T2: it isn't, but all that the loss sees of that is the softmax's curvature, and no other token wins."""
    parallel: bool = False
    """T3: their output vectors are nearly one."""
    opposed: bool = False
    """T3: their output vectors point apart."""


def class_of(of: Evidence) -> str:
    """One of the words above. Without T2 a joint code is neither readable nor hidden, and no pair has a function."""
    if of.joint_code:
        return {None: JOINT_CODE, False: JOINT_CODE_READABLE, True: JOINT_CODE_HIDDEN}[of.hidden]
    if of.hidden:
        return ANTAGONIST if of.opposed else HIDDEN
    if not of.significant:
        return INDEPENDENT
    if of.never_part or of.alike or (of.curvature and of.parallel):
        return REDUNDANT
    return NOT_TESTABLE if of.joint_code is None else COMPOSITIONAL

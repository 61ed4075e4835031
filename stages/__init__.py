"""Contents: every stage, in the order of the chain."""

from stages.chain import STAGES as STAGES

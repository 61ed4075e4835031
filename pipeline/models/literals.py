"""What firing rules speak of: which token stands here, or some places back."""

# N tokens, L literals, V vocabulary, O token positions looked back

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Literals:
    """Literal l is true of a token iff the token `offset_L[l]` places back is in the set `member_LV[l]`."""

    member_LV: Tensor
    """bool"""
    offset_L: Tensor
    """uint8; 0 is the current token."""

    def values(self, context_ON: Tensor, which: Tensor | None = None) -> Tensor:
        """(L, N) bool. `context_ON[o]` is the token o places back, -1 before the beginning (no literal is true)."""
        member_LV = self.member_LV if which is None else self.member_LV[which]
        offset_L = self.offset_L if which is None else self.offset_L[which]
        token_LN = context_ON[offset_L.long()]
        return member_LV.gather(1, token_LN.clamp(min=0)) & (token_LN >= 0)

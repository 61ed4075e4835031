"""fired_sum: what the experts in the cells that fire add for each token, biases of the axes included, in one call.

The sum that `kernels/cells`, `expert_sum` and `axis_bias` make one after the other, which stay its definition and run
wherever there are gradients or no C++ library. For inference alone.
"""

from kernels.fired_sum.native import ExpertLayer, ExpertTable

__all__ = ["ExpertLayer", "ExpertTable"]

"""What stages are made of. Importing anything of it first chooses how threads wait: torch must not be loaded before."""

from kernels.interrupts import end_at_once_while_importing as end_at_once_while_importing
from pipeline.threads import choose_waiting

end_at_once_while_importing()
choose_waiting()

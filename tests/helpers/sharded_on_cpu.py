"""`trim-trainer` in processes that shard a model on CPUs, where accelerate would leave it whole in each without a word.

accelerate launch --config_file recipes/accelerate/fsdp2.yaml --num_processes 2 sharded_on_cpu.py train ...
"""

import os
import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def shard_on_cpu():
    """Take processes on CPUs, too, for those that FSDP is for, where it is asked for: the rest is accelerate's own."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    plain = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **options):
        plain(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = init


if __name__ == "__main__":
    shard_on_cpu()
    from trim_trainer.cli.main import main

    sys.exit(main(sys.argv[1:]))

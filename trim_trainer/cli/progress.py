"""The progress bar of a trimming run: loss, depth, and one line per drop."""

import sys

from . import tables


def replace_progress_bar(trainer) -> None:
    """Let the progress bar show loss and depth, and one line per drop."""
    from transformers import PrinterCallback, ProgressCallback

    class TrimProgress(ProgressCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if not state.is_world_process_zero or self.training_bar is None:
                return
            if "trim_depth" in logs:
                self.training_bar.write(tables.describe_drop(trainer.history, state))
                sys.stdout.flush()  # a live line in a log file too
                self.training_bar.set_postfix(layers=logs["trim_depth"])
            elif "loss" in logs:
                self.training_bar.set_postfix(layers=self.depth(), loss=f"{logs['loss']:.3f}")

        def depth(self):
            return trainer.history.depth if trainer.history is not None else "all"

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(TrimProgress)

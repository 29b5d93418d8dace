"""What bitsandbytes says while our imports load it, which PEFT does for every run: kept for a run that is quantized."""

import inspect
import logging

# Loggers that bitsandbytes uses while it is imported: of a native library or of kernels for CPUs that it does not find.
_LOGGERS = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.cextension", "bitsandbytes.cuda_specs")
_PACKAGE = __name__.partition(".")[0]
_kept: list[logging.LogRecord] = []


def keep_import_messages() -> None:
    """Keep back what these loggers say while a module of this package is being imported, and nothing else."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if _is_ours_to_say not in logger.filters:
            logger.addFilter(_is_ours_to_say)


def say_import_messages(model) -> None:
    """Say once what was kept, if the weights of this model are bitsandbytes': it tells what its user can install."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or quantizer.quantization_config.quant_method != "bitsandbytes":
        return
    while _kept:
        record = _kept.pop(0)
        logging.getLogger(record.name).handle(record)


def _is_ours_to_say(record: logging.LogRecord) -> bool:
    if not _is_importing():
        return True
    _kept.append(record)
    return False


def _is_importing() -> bool:
    """Whether the body of a module of this package is running: whatever is loaded now, we have asked for."""
    frame = inspect.currentframe()
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if frame.f_code.co_name == "<module>" and package == _PACKAGE:
            return True
        frame = frame.f_back
    return False

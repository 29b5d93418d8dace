"""Progress bars and warnings of libraries, out of the way of what a command prints."""


def quiet_libraries() -> None:
    """Keep progress bars of single calls out of the way of the run's own."""
    import warnings

    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()

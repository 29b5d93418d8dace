"""`trim-trainer publish`: put a trimmed model and its depths on the Hub."""

import argparse

from ..evaluation.quiet import quiet_libraries
from .options import Parser


def publish(arguments: list[str]) -> int:
    """Put a trimmed model and its depths on the Hub, and print what is there."""
    parser = Parser(
        prog="trim-trainer publish", description="Check, upload, read back: a trimmed model becomes a Hub repository."
    )
    parser.add_argument("directory", help="what a trimming run saved")
    parser.add_argument("--repo-id", required=True, help="namespace/name on the Hub; made if it is not there")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, help="default: that of the account")
    parser.add_argument("--commit-message", help="of each commit")
    options = parser.parse_args(arguments)
    from ..hub.publishing import publish as to_hub

    quiet_libraries()
    done = to_hub(options.directory, options.repo_id, private=options.private, commit_message=options.commit_message)
    for each in done:
        what = f"commit {each.commit[:8]}" if each.is_new else f"unchanged at {each.commit[:8]}"
        print(f"{each.revision}: {each.depth} layers, {what}, tag {each.tag}, {each.url}")
        if each.removed:
            print(f"{each.revision}: removed, since loaders would take them: {', '.join(each.removed)}")
        if each.left_out:
            print(f"{each.revision}: not sent, since loaders would take them instead: {', '.join(each.left_out)}")
    return 0

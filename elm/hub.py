"""Publish a trained model, or the questions it was trained on, on the Hugging Face hub.

    python -m elm.hub push out/sft-llava my-lab/ecg-model --license cc-by-4.0
    python -m elm.hub push-questions out/sft-llava my-lab/ecg-questions --private

`push` uploads what loads the model, its model card, and its audit; not its checkpoints, and not what shows patients:
recordings, and the questions and answers about each of them. Folders of this machine are named by their last part only.
A model that was not audited is refused. docs/hub.md says more. Research use only; not a medical device.
"""

import logging
import sys
from collections.abc import Sequence

from data.support.commands import command_line, home_expanded
from data.support.hub import check_repo_id
from data.support.sentences import Refused
from data.support.status import command


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line("elm.hub", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    model = commands.add_parser("push", help="a trained model with its card and audit")
    rows = commands.add_parser("push-questions", help="the rows of the questions it was trained on; no recordings")
    for action in (model, rows):
        action.add_argument("folder", type=home_expanded, metavar="FOLDER", help="folder of a trained model")
        action.add_argument("repo_id", metavar="OWNER/NAME", help="repository on the hub; made if it is not there")
        action.add_argument("--private", action="store_true", help="make the repository private")
        action.add_argument("--license", metavar="ID", help="the hub's identifier of a licence, e.g. cc-by-4.0")
    model.add_argument("--unaudited", action="store_true", help="publish without an audit; the card says so")
    model.add_argument(
        "--with_recordings",
        action="store_true",
        help="upload what shows patients, too: examples/, and questions and answers about each recording",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    check_repo_id(args.repo_id)

    from data.card import push_questions
    from elm.saved.publish import Publication, push
    from elm.saved.run import SavedRun

    try:
        if args.command == "push":
            how = Publication(args.private, args.license, args.unaudited, args.with_recordings)
            address = push(args.folder, args.repo_id, how)
        else:
            saved = SavedRun(args.folder)
            leaks = saved.training.get("leaks") or ()
            address = push_questions(
                saved.questions, args.repo_id, private=args.private, licence=args.license, leaks=leaks
            )
    except RuntimeError as error:  # in which the client wraps a failed upload
        raise Refused(str(error)) from error
    sys.stdout.write(f"{address}\n")


if __name__ == "__main__":
    main()

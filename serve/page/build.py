"""The chat page in Gradio: its layout, and how it is served.

Nothing leaves this machine: no analytics, no share link, no fonts or scripts from elsewhere, no history in the browser
(Gradio's run history would keep uploads and answers there). Uploaded files are read once and deleted at once.
"""

from pathlib import Path

import gradio as gr

from data.paper import GAINS, LAYOUTS, SPEEDS
from serve.page.desk import Desk
from serve.page.place import Place
from serve.page.talk import QUIET, Talk, Update
from serve.page.view import DISCLAIMER, head_html, warning_html

FILES_KEPT = 600  # s that a file stays at most which was sent but never read
MAX_FILE_SIZE = "5mb"
SETTINGS = (  # label, choices and first value of the controls of the paper
    ("Layout", list(LAYOUTS), "3x4"),
    ("Speed (mm/s)", list(SPEEDS), 25),
    ("Gain (mm/mV)", list(GAINS), 10),
)
OFF = ("share", "enable_monitoring", "run_history", "ssr_mode", "pwa", "mcp_server", "show_error", "inbrowser")
CLOSED = {**dict.fromkeys(OFF, False), "strict_cors": True, "allowed_paths": [], "footer_links": []}
_FOLDER = Path(__file__).parent


def build(desk: Desk, folder: Path | None = None) -> gr.Blocks:
    """The page; the model's audit may lie in `folder`."""
    with gr.Blocks(
        title="Ask an ECG", analytics_enabled=False, fill_width=True, delete_cache=(FILES_KEPT, FILES_KEPT)
    ) as page:
        gr.HTML(warning_html(), elem_id="warning")
        gr.HTML(head_html(desk.engine.name, desk.engine.digest, folder))
        with gr.Row(elem_id="desk", equal_height=False):
            with gr.Column(elem_id="recordings", scale=3, min_width=300):
                with gr.Row(elem_id="places", equal_height=False):
                    places = [Place(desk, number) for number in (0, 1)]
                with gr.Row(elem_id="tools", equal_height=True):
                    compare = gr.Checkbox(label="Compare two ECGs", container=False, elem_id="compare", min_width=150)
                    settings = [
                        gr.Dropdown(choices, label=label, value=value, min_width=70, elem_id=label.split()[0].lower())
                        for label, choices, value in SETTINGS
                    ]
            with gr.Column(elem_id="talk", scale=2, min_width=300):
                talk = Talk(desk)

        def on_compare(on: bool, request: gr.Request) -> Update:
            desk.compare(desk.sessions[request.session_hash], on)
            titles = {places[0].title: gr.update(visible=on), places[1].column: gr.update(visible=on)}
            return {**titles, **talk.compared(on)}

        def on_leave(request: gr.Request) -> None:
            desk.sessions.close(request.session_hash)

        talk.wire()
        for place in places:
            place.wire(settings, talk)
        changed = [places[0].title, places[1].column, *talk.suggestions, talk.without, talk.another]
        compare.change(on_compare, compare, changed, **QUIET).then(talk.after, None, talk.outputs, **QUIET)
        page.unload(on_leave)
    return page


def launch(page: gr.Blocks, host: str, port: int, password: str | None) -> None:
    """Serve the page until it is closed; raises `OSError` where the port is taken."""
    page.queue(default_concurrency_limit=8, max_size=200, api_open=False)
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    page.launch(
        server_name=host,
        server_port=port,
        auth=("ecg", password) if password else None,
        auth_message=f"{DISCLAIMER} The user name is ecg.",
        **CLOSED,
        max_file_size=MAX_FILE_SIZE,
        quiet=True,
        prevent_thread_lock=True,
        theme=gr.themes.Default(
            primary_hue="rose", neutral_hue="slate", **fonts
        ).set(  # a shade darker than Gradio's: white letters on it are legible
            button_primary_background_fill="*primary_600",
            button_primary_background_fill_hover="*primary_700",
            button_primary_border_color="*primary_600",
        ),
        css_paths=_FOLDER / "page.css",
        head=f"<script>{(_FOLDER / 'page.js').read_text(encoding='utf-8')}</script>",
    )

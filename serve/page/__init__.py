"""The chat page: recordings on paper, a conversation, and answers side by side."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported

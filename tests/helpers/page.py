"""What tests of the chat page share: an engine that says what it was asked, and what a visitor sees of HTML."""

import html.parser


class Answering:
    """An engine that says what the first recording is called, or that it was shown none."""

    name, digest = "elm", "abc"

    def __init__(self, say=None):
        self.asked, self.say = [], say

    def stream(self, ecgs, question, history=(), stop=None):
        self.asked.append(([ecg.record_id for ecg in ecgs], question, list(history)))
        for word in (self.say or f"about {ecgs[0].record_id if ecgs else 'nothing'}").split(" "):
            if stop.is_set():
                return
            yield f"{word} "


def done(steps):
    return sum(1 for _ in steps)


class Tags(html.parser.HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words = set(), set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.words += data

"""A Space to try a multimodal embedding model: search, prompt lab, similarity map, hard-negative explorer.

Start it with `hf-mmembed demo`, `python app.py`, or as a Space. Environment: MMEMBED_MODEL, a directory or Hub id of an
embedder (default: the shipped `mmembed-tiny`), and MMEMBED_REASONER, those of a generative model that may write about a
query before it is embedded (default: none).
"""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:  # on ZeroGPU it has to come before torch; elsewhere its decorator does nothing
    from spaces import GPU as on_gpu
except ImportError:

    def on_gpu(**options):  # type: ignore[no-untyped-def]
        """No ZeroGPU here."""
        return lambda function: function


import functools
import logging
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import gradio as gr
import numpy as np
from engine import (
    MAX_ADDED,
    MAX_BYTES,
    MAX_TEXT,
    PROMPTS,
    Engine,
    Picture,
    Reading,
    Visitor,
    pictures_of,
    query_of,
    read_upload,
)
from explorer import Explorer, candidate_list
from views import bump_chart, cards, gallery, heat_map, note, prompt_box

__all__ = ["build", "launch"]

logger = logging.getLogger("hf_mmembed.space")

INSTRUCTIONS = ("", "Find a picture of this.", "What colour is the object?", "Find the picture after this change.")
EXAMPLES = [
    "a blue heart left of a red star",
    "a pink triangle",
    "a yellow triangle under a red diamond",
    "many moons",
]
LAB_REMARKS = {
    "no prompt": "The bare input.",
    "generic": "The chat template with a system prompt that says nothing about the task.",
    "hierarchical": "The checkpoint's own prompt, or SaHa's where it has none.",
}
LAB_EXAMPLE = "a green heart"
RESULTS, MAX_MAP = 10, 8
SECONDS, SECONDS_TO_THINK = 10, 60  # of a GPU on ZeroGPU, at most
MAX_WAITING = 512  # events of all visitors together; those beyond are refused


class Upload(gr.Image):
    """A picture from the visitor's own machine, handed on as a path and looked at by our guards alone.

    Gradio's own component would fetch a URL that somebody sends in place of a file, and open the file before us.
    """

    is_template = True

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """As in Gradio, for files alone."""
        return await super().async_move_resource_to_block_cache(self._not_an_address(url_or_file_path))

    def preprocess(self, payload: Any) -> str | None:
        """The path of the uploaded file, unopened."""
        if payload is None:
            return None
        return str(self._not_an_address(payload.path or "data:"))

    @staticmethod
    def _not_an_address(path: str | Path | None) -> str | Path | None:
        if str(path).lower().startswith(("http:", "https:", "data:", "ftp:")):
            raise gr.Error("Pictures are not fetched from the web; upload a file.")
        return path


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a visitor did wrong is said in a toast; what we did wrong goes into the log, and not to the visitor."""

    @functools.wraps(function)
    def safe(*args: Any) -> Any:
        try:
            return function(*args)
        except gr.Error:
            raise
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            logger.exception("in %s", function.__name__)
            raise gr.Error("Something went wrong on our side. Try again.", print_exception=False) from error

    return safe


def build(engine: Engine, explorer: Explorer) -> gr.Blocks:
    """The page around a model."""

    def seconds(inputs: list[Any], task: str, prompts: tuple[str, ...] = (), think: bool = False) -> int:
        return SECONDS_TO_THINK if think else SECONDS

    # ZeroGPU runs it in another process: one function, so that all events share one that is warm; guarded inside, as only
    # errors of Gradio keep their words on the way back; and what is wrong with the input is found before, as each error
    # costs that process.
    read: Callable[..., Reading] = on_gpu(duration=seconds)(guarded(engine.read))

    @guarded
    def search(text: str, path: str | None, instruction: str, k: int, think: bool, visitor: Visitor) -> str:
        query = query_of(text, read_upload(path), instruction)
        if k is None:
            raise ValueError("Choose how many results you want.")
        if think:
            engine.check_reasoner()
        return shown_results(read([query], "query", ("hierarchical",), bool(think)), int(k), visitor)

    def shown_results(reading: Reading, k: int, visitor: Visitor) -> str:
        hits = engine.rank(reading.vectors["hierarchical"][0], visitor)
        shown, trace = cards(hits[:k], worst=hits[-1][1]), reading.trace
        if trace is None:
            return shown
        cut = " It was cut off there." if trace.finish_reason == "length" else ""
        remark = f"{trace.n_tokens} tokens, which the model read behind your query.{cut}"
        return prompt_box(trace.text, f"What {engine.reasoner_name} thought first", remark) + shown

    @guarded
    def add(path: str | None, visitor: Visitor) -> tuple[Visitor, str]:
        image = read_upload(path)
        if image is None:
            raise ValueError("Choose a picture above first.")
        visitor.check_room()
        reading = read([{"image": image}], "document", PROMPTS)
        visitor.added[:0] = pictures_of([image], ["your picture"], reading)
        return visitor, shown_gallery(visitor)

    def shown_gallery(visitor: Visitor) -> str:
        own = f"{len(visitor.added)} of yours (at most {MAX_ADDED}), " if visitor.added else ""
        return note(f"Searched: {own}{len(engine.samples)} drawn ones.") + gallery(engine.gallery(visitor))

    @guarded
    def compare(text: str, path: str | None, instruction: str, visitor: Visitor) -> tuple[str, str]:
        query = query_of(text, read_upload(path), instruction)
        return shown_comparison(read([query], "query", PROMPTS), visitor)

    def shown_comparison(reading: Reading, visitor: Visitor) -> tuple[str, str]:
        columns = [(prompt, engine.rank(reading.vectors[prompt][0], visitor, prompt)) for prompt in PROMPTS]
        boxes = "".join(prompt_box(reading.rendered[p], p, LAB_REMARKS[p]) for p in PROMPTS)
        return bump_chart(columns), f'<div class="prompts">{boxes}</div>'

    @guarded
    def draw_map(lines: str, shift: int, visitor: Visitor) -> str:
        texts = [line.strip() for line in (lines or "").splitlines() if line.strip()][:MAX_MAP]
        if not texts:
            raise ValueError("Write one text per line.")
        return shown_map(read([query_of(text, None, None) for text in texts], "query"), texts, shift, visitor)

    def on_map(shift: int, visitor: Visitor) -> list[Picture]:
        return [*visitor.added, *Random(int(shift)).sample(engine.samples, len(engine.samples))][:MAX_MAP]

    def shown_map(reading: Reading, texts: list[str], shift: int, visitor: Visitor) -> str:
        chosen = on_map(shift, visitor)
        scores = reading.vectors["hierarchical"] @ np.stack([picture.vectors["hierarchical"] for picture in chosen]).T
        return heat_map(texts, chosen, scores)

    def other_pictures(shift: int, visitor: Visitor) -> tuple[int, str]:
        return shift + 1, "\n".join(picture.about for picture in on_map(shift + 1, visitor))

    @guarded
    def explore(picked: str) -> tuple[str, str, str]:
        if picked not in {value for _, value in queries}:
            raise ValueError("Pick one of the queries.")
        row = int(picked)
        own = (
            f'<figure class="own"><img src="{explorer.own_picture(row)}" alt="the marked answer">'
            "<figcaption>the marked answer</figcaption></figure>"
        )
        return own, candidate_list(explorer.candidates(row)), explorer.cluster_view(row)

    # Gradio documents every value as a string, and takes a choice only in the type it was given.
    queries = [(text, str(row)) for text, row in explorer.choices]

    # What a new tab shows is the same for everybody. Were it computed for each, those who come together would fill the
    # queue, and on ZeroGPU spend their time.
    nobody = Visitor()
    first_results = shown_results(engine.read([query_of(EXAMPLES[0], None, None)], "query"), RESULTS, nobody)
    first_chart, first_prompts = shown_comparison(
        engine.read([query_of(LAB_EXAMPLE, None, None)], "query", PROMPTS), nobody
    )
    first_texts = [picture.about for picture in on_map(0, nobody)]
    first_map = shown_map(
        engine.read([query_of(text, None, None) for text in first_texts], "query"), first_texts, 0, nobody
    )
    first_own, first_steps, first_cluster = explore(queries[0][1])

    # Uploads are looked for every ten minutes, so none is older than an hour.
    with gr.Blocks(title="hf-mmembed", fill_width=False, delete_cache=(600, 3000)) as page:
        visitor = gr.State(Visitor(), time_to_live=3600)
        gr.HTML(
            "<h1>One space for words and pictures</h1><p>Search by text, by picture, or by a picture and what to change "
            f"in it. The model here is <b>{engine.name}</b>"
            + (
                ", tiny and trained on drawn shapes: ask it about shapes, colours and places.</p>"
                if engine.is_tiny
                else ".</p>"
            ),
            elem_id="intro",
        )
        with gr.Tabs():
            with gr.Tab("Search", id="search"):
                with gr.Row():
                    with gr.Column(scale=2, min_width=280):
                        text = gr.Textbox(
                            label="What are you looking for?", value=EXAMPLES[0], max_length=MAX_TEXT, autofocus=True,
                            placeholder="a red star", elem_id="query",
                        )  # fmt: skip
                        picture = Upload(
                            label=f"Picture, up to {MAX_BYTES // 1_000_000} MB", sources=["upload", "clipboard"],
                            type="filepath", height=215, elem_id="query-picture", buttons=[],
                        )  # fmt: skip
                        think = gr.Checkbox(
                            label="Think first", info=f"{engine.reasoner_name} writes about the query; both are read.",
                            visible=bool(engine.reasoner_name), elem_id="think",
                        )  # fmt: skip
                        with gr.Accordion("More", open=False):
                            instruction = gr.Dropdown(
                                list(INSTRUCTIONS), value="", allow_custom_value=True, label="Instruction to the model",
                                info="Pick one or write your own.",
                            )  # fmt: skip
                            k = gr.Slider(1, 25, value=RESULTS, step=1, label="How many results")
                        with gr.Row():
                            go = gr.Button("Search", variant="primary", elem_id="go", min_width=100)
                            put = gr.Button("Add to gallery", elem_id="add", min_width=100)
                        gr.Examples([[example] for example in EXAMPLES], inputs=[text], label="Try")
                    with gr.Column(scale=5, min_width=300):
                        results = gr.HTML(first_results, elem_id="results", min_height=300)
                with gr.Accordion("The gallery that is searched", open=False):
                    searched = gr.HTML(shown_gallery(nobody), elem_id="gallery")
                inputs = [text, picture, instruction, k, think, visitor]
                for event in (go.click, text.submit):
                    event(search, inputs, results, api_name="search" if event == go.click else False)
                put.click(add, [picture, visitor], [visitor, searched], api_name=False)

            with gr.Tab("Prompt lab", id="lab"):
                gr.HTML(
                    note(
                        "The same weights and the same query under three prompts. Lines follow each picture; green ones climb."
                    )
                )
                with gr.Row(equal_height=True):
                    lab_text = gr.Textbox(
                        label="Query", value=LAB_EXAMPLE, max_length=MAX_TEXT, elem_id="lab-query", scale=3
                    )
                    lab_instruction = gr.Textbox(label="Instruction (optional)", max_length=MAX_TEXT, scale=2)
                    lab_go = gr.Button("Compare", variant="primary", elem_id="lab-go", min_width=110, scale=1)
                with gr.Accordion("With a picture", open=False):
                    lab_picture = Upload(
                        label="Picture", sources=["upload", "clipboard"], type="filepath", height=170, buttons=[]
                    )
                chart = gr.HTML(first_chart, elem_id="chart", min_height=200)
                prompts = gr.HTML(first_prompts, elem_id="prompts")
                gr.Markdown(
                    "### Similarity map\nUp to eight texts and eight pictures; your own pictures come first. The best picture of each text is outlined."
                )
                with gr.Row():
                    with gr.Column(scale=2, min_width=260):
                        lines = gr.Textbox(
                            label="Texts, one per line",
                            value="\n".join(first_texts),
                            lines=8,
                            max_lines=8,
                            max_length=8 * MAX_TEXT,
                            elem_id="map-texts",
                        )
                        shift = gr.State(0)
                        with gr.Row():
                            map_go = gr.Button("Draw", variant="primary", elem_id="map-go", min_width=90)
                            map_other = gr.Button("Other pictures", elem_id="map-other", min_width=120)
                    with gr.Column(scale=5, min_width=300):
                        heat = gr.HTML(first_map, elem_id="heat", min_height=200)
                lab_inputs = [lab_text, lab_picture, lab_instruction, visitor]
                lab_go.click(compare, lab_inputs, [chart, prompts], api_name="compare")
                lab_text.submit(compare, lab_inputs, [chart, prompts], api_name=False)
                map_go.click(draw_map, [lines, shift, visitor], heat, api_name="similarity_map")
                map_other.click(other_pictures, [shift, visitor], [shift, lines], api_name=False).then(
                    draw_map, [lines, shift, visitor], heat, api_name=False
                )

            with gr.Tab("SaHa explorer", id="saha"):
                gr.HTML(
                    note(
                        "Training needs pictures that nearly fit, and must not punish the model for pictures that do fit though "
                        "nobody marked them. SaHa asks who owns a candidate: if the owner asks the same as you, the candidate "
                        "is probably an answer, and is set aside. Here the truth is known, so you can see when that is right."
                    )
                )
                with gr.Row():
                    with gr.Column(scale=4, min_width=300):
                        pick = gr.Dropdown(queries, value=queries[0][1], label="Query", elem_id="pick")
                    with gr.Column(scale=1, min_width=150):
                        own = gr.HTML(first_own, elem_id="own", min_height=150)
                gr.Markdown("#### Nearest pictures, and what becomes of them")
                steps = gr.HTML(first_steps, elem_id="steps")
                gr.Markdown(
                    "#### The cluster that is trained together\nEach picture is a negative for every other query."
                )
                cluster = gr.HTML(first_cluster, elem_id="cluster")
                pick.change(explore, pick, [own, steps, cluster], api_name="explore")
        gr.HTML(note("Pictures you upload are for this tab alone, and are deleted within the hour."))
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=2)


def launch(model: str | None = None, **options: Any) -> Any:
    """Build the page and serve it; `options` are those of `gradio.Blocks.launch`."""
    engine = Engine(model)
    page = build(engine, Explorer(engine))
    sans = ["ui-sans-serif", "system-ui", "sans-serif"]  # nothing is loaded from elsewhere
    theme = gr.themes.Soft(
        primary_hue="indigo", neutral_hue="slate", font=sans, font_mono=["ui-monospace", "monospace"]
    )
    defaults = {
        "theme": theme,
        "css_paths": [Path(__file__).with_name("style.css")],
        "max_file_size": MAX_BYTES,
        "state_session_capacity": 1000,  # Gradio keeps some 100 kB for each, also of those that have left
        "show_error": True,
        "ssr_mode": False,
        "_frontend": False,  # it decides on nothing but a call to ourselves, after which a busy machine gives up
        "run_history": False,
    }
    return page.launch(**{**defaults, **options})


if __name__ == "__main__":
    launch()

"""Commands of TAPv2-Chat: conversation files into a store; talk about a picture."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tap_engine.jobs.options import BUILD, SAMPLE_WORLD, StorageOption
from tap_engine.jobs.output import EVALUATE, FAILED, TRAIN, command_errors, parse_pairs
from tap_engine.jobs.train_options import (
    DryRunOption,
    ResumeOption,
    SetOption,
    training_session,
)


def register_data(app: typer.Typer) -> None:
    """Adds the data half to `tap-data`."""
    app.command("import-conversations", rich_help_panel=BUILD)(import_conversations)
    app.command("sample-conversations", rich_help_panel=SAMPLE_WORLD)(sample_conversations)


def import_conversations(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Conversations in LLaVA's form: json, jsonl or parquet, gzipped or not."
        ),
    ],
    out: Annotated[str, typer.Option(help="The store: a folder or s3:// / gs:// prefix.")],
    images: Annotated[
        str | None,
        typer.Option(help="The folder below which the images lie, or a store that holds them."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the conversations that the store holds.")
    ] = False,
    storage_option: StorageOption = None,
) -> None:
    """Read conversations about images, check them, and write them as a table.

    Every row that cannot be used is written to the table `conversation_rejects` with its reason.

    Example: tap-data import-conversations llava_v1_5_mix665k.json --images images --out chat
    """
    with command_errors():
        from tap_engine.pipeline.conversations.images import ImageFolder, Images, ImageStore
        from tap_engine.pipeline.conversations.importing import import_conversations as run
        from tap_engine.pipeline.sources.filesystem import absolute_uri
        from tap_engine.pipeline.store import Store
        from tap_engine.schemas.errors import ConfigError
        from tap_engine.schemas.tables import IMAGES

        options = dict(parse_pairs(storage_option))
        found: Images | None = None
        if images is not None:
            holder = Store(absolute_uri(images), options)
            if holder.exists(IMAGES):
                found = ImageStore(holder)
            elif Path(images).is_dir():
                found = ImageFolder(Path(images))
            else:
                raise ConfigError(f"--images {images!r} is neither a folder nor a store")
        store = Store(absolute_uri(out), options)
        summary = run(files, found, store, replace=replace, say=typer.echo)
        kept = ", ".join(f"{name} {count:,}" for name, count in sorted(summary.kept.items()))
        typer.echo(f"kept {summary.kept.total():,} conversations ({kept or 'none'}) in {out}")
        for title, counts in (("changed", summary.notes), ("left out", summary.rejects)):
            if counts:
                parts = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
                typer.echo(f"{title}: {counts.total():,} ({parts})")
        if summary.rejects:
            typer.echo("see table `conversation_rejects` for each row and its reason")
        for problem in summary.unreadable:
            typer.echo(f"SourceError: {problem}", err=True)
        if summary.unreadable:
            sys.exit(FAILED)


def register(app: typer.Typer) -> None:
    """Adds `chat` to `tap`."""
    app.command()(chat)


def chat(
    image: Annotated[str, typer.Argument(help="The picture to talk about.")],
    model: Annotated[
        str, typer.Option(help="The folder of the chat model, with chat.safetensors.")
    ],
    ask: Annotated[
        str | None, typer.Option(help="One question; without it questions are read line by line.")
    ] = None,
    language_model: Annotated[
        str | None,
        typer.Option(
            help="The folder of the language model, if it is not found under its own name."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="The length of the longest answer, in tokens.")
    ] = 128,
    device: Annotated[str, typer.Option(help="The device: cpu or cuda.")] = "cpu",
    download: Annotated[
        bool, typer.Option("--download", help="Allow fetching the language model.")
    ] = False,
) -> None:
    """Talk about a picture; an empty line or Ctrl-D ends it.

    A box in a question, such as [10, 20, 60, 70] in percent, is also shown to TAP, which names it.

    Example: tap chat photo.jpg --model runs/chat --ask "What is on the left?"
    """
    with command_errors():
        from tap_engine.model.chat.tap_chat import TapChat
        from tap_engine.model.image_input import open_image
        from tap_engine.model.picture import describe

        talker = TapChat.from_pretrained(
            model, language_model=language_model, device=device, download=download
        )
        talk = talker.look(open_image(image))
        questions = [ask] if ask is not None else _typed()
        for question in questions:
            for piece in talker.stream(talk, question, max_new_tokens=max_new_tokens):
                typer.echo(piece, nl=False)
            typer.echo()
            for number, region in enumerate(talker.regions(talk, question)):
                typer.echo(f"region {number}: {describe(region)}")


def _typed() -> Iterator[str]:
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            question = input(prompt).strip()
        except EOFError:
            return
        if not question:
            return
        yield question


def register_training(app: typer.Typer) -> None:
    """Adds training and scoring to `tap-train`."""
    app.command("chat", rich_help_panel=TRAIN)(train)
    app.command("measure-chat", rich_help_panel=EVALUATE)(measure)
    app.command("score-answers", rich_help_panel=EVALUATE)(score_answers)


def score_answers(
    benchmark: Annotated[
        str, typer.Argument(help="The benchmark: vqa-v2, textvqa, gqa, mmbench or seed-bench.")
    ],
    questions: Annotated[
        Path, typer.Argument(help="The benchmark's own file; with people's answers, where it has.")
    ],
    answers: Annotated[
        Path, typer.Argument(help="The model's answers: json lines with question_id and text.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Also write the official result file, .json or .jsonl.")
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", help="Print single questions as well.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print json.")] = False,
) -> None:
    """Score answers to questions about images by the benchmark's official rules, in percent.

    Example: tap-train score-answers gqa testdev_balanced_questions.json answers.jsonl
    """
    with command_errors():
        from tap_engine.train.evaluation.answers.benchmarks import (
            score_answers as run,
        )
        from tap_engine.train.evaluation.answers.benchmarks import (
            write_result_file,
        )

        scores, rows = run(benchmark, questions, answers)
        if not details:
            single = ("question/", "circular_hit/")
            scores = {k: v for k, v in scores.items() if not k.startswith(single)}
        if out is not None:
            write_result_file(out, rows)
        if as_json:
            typer.echo(json.dumps(scores))
            return
        for name, value in scores.items():
            typer.echo(f"{name:<40}  {value:10.4f}")


def train(
    recipe: Annotated[
        str,
        typer.Option(
            help="The settings to start from: chat_caption, chat_instruct, "
            "sample_chat_caption or sample_chat_instruct."
        ),
    ],
    conversations: Annotated[
        list[str],
        typer.Option(help="A store that `tap-data import-conversations` wrote; repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="The folder of the run.")],
    images: Annotated[
        list[str] | None,
        typer.Option(
            help="The folder or store of images, one per --conversations, in their order."
        ),
    ] = None,
    resume: ResumeOption = "auto",
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Train a chat model, or go on training; the same under torchrun, in many processes.

    Example: tap-train chat --recipe chat_caption --conversations captions --images photos
    --set init.tap=checkpoints/tap-l --out runs/chat1
    """
    with command_errors():
        from dataclasses import replace

        from tap_engine.schemas.settings import with_overrides
        from tap_engine.train.chat.config import chat_recipe

        config = chat_recipe(recipe)
        data = replace(config.data, stores=tuple(conversations), images=tuple(images or ()))
        config = with_overrides(replace(config, data=data), set_ or [])
        if dry_run:
            typer.echo(json.dumps(config.to_dict(), indent=1))
            return

        from tap_engine.train.chat.training import open_chat_run, train_chat

        with training_session():
            opened = open_chat_run(config, out, resume)
            train_chat(opened)
        opened.log.say(f"done: {opened.step:,} steps; the newest checkpoint is in {out}")


def measure(
    run: Annotated[Path, typer.Argument(help="Run or checkpoint folder of a chat model.")],
    conversations: Annotated[str, typer.Option(help="Store of held-out conversations.")],
    images: Annotated[str | None, typer.Option(help="Folder or store of their images.")] = None,
    template: Annotated[
        str | None, typer.Option(help="caption for stage 1; by default the model's own.")
    ] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Show no image.")] = False,
    limit: Annotated[int, typer.Option(help="The first N conversations; 0 for all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Exact answers and loss on held-out conversations, with their own images and with others'.

    Example: tap-train measure-chat runs/chat2 --conversations val --images scenes/images
    """
    with command_errors():
        from dataclasses import asdict

        import torch

        from tap_engine.model.chat.tap_chat import TapChat
        from tap_engine.train.chat.config import ConversationConfig
        from tap_engine.train.chat.measuring import measure_chat
        from tap_engine.train.chat.stream import ChatStream
        from tap_engine.train.checkpoint import model_folder

        chat = TapChat.from_pretrained(model_folder(run), dtype=torch.float32)
        data = ConversationConfig(
            stores=(conversations,),
            images=(images,) if images else (),
            template=template or chat.config.template,
            blind=blind,
        )
        stream = ChatStream(
            data,
            chat.tokens,
            visual_tokens=chat.model.visual_tokens,
            max_tokens=chat.config.max_tokens,
            image_size=chat.tap.model.config.image_size,
            fill_rgb=chat.tap.model.fill_rgb,
            seed=0,
        )
        found = measure_chat(chat.model, stream, limit=limit)
        if as_json:
            typer.echo(json.dumps(asdict(found)))
            return
        for line in found.lines():
            typer.echo(line)


def sample_conversations(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 300,
    held_out: Annotated[int, typer.Option(help="Other scenes, to measure on.")] = 60,
    size: Annotated[int, typer.Option(help="Side of a scene, px.")] = 256,
    seed: Annotated[int, typer.Option(help="Another seed gives other scenes.")] = 0,
) -> None:
    """Draw scenes with detailed captions and questions whose answers are known.

    Example: tap-data sample-conversations talk --scenes 3000 --held-out 300
    """
    with command_errors():
        from tap_engine.pipeline.sample.conversations import write_conversations
        from tap_engine.schemas.progress import Progress

        bar = Progress(scenes + held_out, unit="scenes")
        write_conversations(
            out, scenes=scenes, held_out=held_out, size=size, seed=seed, progress=bar.update
        )
        bar.close()
        typer.echo(f"drew {scenes + held_out:,} scenes with captions and questions in {out}")
        typer.echo(
            f"next: tap-data import-conversations {out}/captions_train.json --images {out}/images "
            "--out STORE"
        )

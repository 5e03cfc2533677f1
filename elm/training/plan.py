"""`--plan`: what a run would need, counted on shapes alone. Nothing is downloaded, loaded or trained.

Parameters and the bytes of weights, gradients and optimizer are counted exactly, on a model without storage.
Activations are what autograd keeps of a Llama layer with LoRA; time follows from FLOPs and an assumed utilisation.
"""

from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from trl import ModelConfig, SFTConfig

from data.conversations.rows import QuestionSet, Row, dialogues, packed
from elm.model import vocabulary
from elm.model.configuration import ElmConfig
from elm.model.families import linear_layers
from elm.model.modeling import ElmForConditionalGeneration
from elm.model.quantization import BYTES_PER_WEIGHT
from elm.saved.arguments import ElmArguments, as_mapping, setting
from elm.saved.card import template
from elm.saved.run import questions_for
from elm.training import dev, tiny_encoder, tiny_llama
from elm.training.base import base_of
from elm.training.build import config_of, lora
from elm.training.dev import ENCODERS, LANGUAGE_MODELS, language_config
from elm.training.stages import characters
from encoders.base import EcgEncoderConfig
from encoders.ecg_byte import EcgByteConfig
from encoders.registry import find_config

CHARACTERS_PER_TOKEN = 4  # of English, in a vocabulary of 100,000
TOKENS_PER_TURN, TOKENS_PER_ROW = 12, 30  # what Llama's chat template puts around each turn and in front of all
NOT_COUNTED = 0.15  # of what is counted: buffers for a moment, and what the allocator loses
CONTEXT = 10**9  # CUDA and its libraries
# ECG-QA on PTB-XL as published: training questions, ECGs of PTB-XL, and characters of a question with its answer.
PUBLISHED_QUESTIONS, PUBLISHED_RECORDS, PUBLISHED_CHARACTERS = 267_539, 21_799, 80


@dataclass
class PlanArguments:
    """Settings of `--plan`."""

    plan: bool = setting(False, "Print what the run would need (memory, time, disk) in place of running it.")
    plan_tflops: float = setting(790.0, "The device's bf16 TFLOP/s; the default is an H200's.")
    plan_utilization: float = setting(0.4, "The share of them that training is taken to use.")

    def __post_init__(self) -> None:
        if self.plan_tflops <= 0 or not 0 < self.plan_utilization <= 1:
            raise ValueError(
                "plan_tflops must be positive and plan_utilization between 0 and 1, got "
                f"{self.plan_tflops} and {self.plan_utilization}"
            )


@dataclass(frozen=True)
class Model:
    """Parameters and bytes, counted on a model without storage."""

    config: ElmConfig
    total: int  # parameters of the model as it is saved
    trained: int  # of LoRA and whatever is trained in full
    quantized: int  # weights held in 4 bits
    linear: int  # weights of the language model's linear layers
    lora: int  # of LoRA alone
    weight_bytes: float  # in training, all copies
    head: int  # width of an attention head
    adapted: dict[str, int]  # width of the input of each layer with LoRA, of one block


def skeleton(
    arguments: ElmArguments, model_args: ModelConfig, questions: QuestionSet | None = None
) -> ElmForConditionalGeneration:
    """The model of a run, without storage.

    Raises:
        ValueError: A tiny language model is asked for without the questions that its vocabulary is made of.
    """
    name = model_args.model_name_or_path
    if (base := base_of(model_args)) is not None:
        with torch.device("meta"):
            model = ElmForConditionalGeneration(ElmConfig.of_folder(base.folder))
        model.requires_grad_(False)
        return model
    if name != "tiny":
        text: PreTrainedConfig = language_config(name, model_args.model_revision)
    elif questions is not None:
        text = tiny_llama.llama_config(tiny_llama.train_tokenizer(dev.words_of(questions)))
    else:
        raise ValueError("the vocabulary of a tiny language model is made of the questions, which are not there")
    encoder = _encoder_config(arguments)
    start = None
    if isinstance(encoder, EcgByteConfig):
        start, text.vocab_size = text.vocab_size, text.vocab_size + encoder.vocabulary
    with torch.device("meta"):
        model = ElmForConditionalGeneration(config_of(arguments, text, encoder, vocabulary_start=start))
    model.requires_grad_(False)
    return model


def _encoder_config(arguments: ElmArguments) -> EcgEncoderConfig:
    """The encoder's configuration, with those of `encoder_args` that it has."""
    name, changes = arguments.encoder, as_mapping("encoder_args", arguments.encoder_args)
    if name == EcgByteConfig.model_type:
        return vocabulary.planned(**changes)
    tiny, kind = tiny_encoder.ENCODERS.get(name), ENCODERS.get(name) or find_config(name)
    make = tiny.config if tiny is not None else kind
    config: EcgEncoderConfig = AutoConfig.from_pretrained(name) if make is None else make()
    settings = config.to_dict()
    return type(config)(**settings | {key: value for key, value in changes.items() if key in settings})


def _first_block(language: PreTrainedModel) -> nn.Module:
    """The first block of a language model.

    Raises:
        ValueError: Its blocks are none of those whose activations are known.
    """
    for module in language.modules():
        if isinstance(module, nn.ModuleList) and any("gate_proj" in name for name in linear_layers(module[0])):
            return module[0]
    kind = language.config.model_type
    raise ValueError(f"--plan knows the memory of blocks like those of Llama, Qwen and Gemma, not of {kind}'s")


def count(
    model: ElmForConditionalGeneration, arguments: ElmArguments, model_args: ModelConfig, dtype: torch.dtype
) -> Model:
    """Parameters and bytes of a model in training; puts LoRA on it."""
    text, total = model.config.text_config, sum(p.numel() for p in model.parameters())
    linear = [layer.get_parameter("weight") for layer in linear_layers(model.model.language_model).values()]
    in_4_bits = {id(weight) for weight in linear} if arguments.quantization else set()
    in_float32 = {id(p) for part in (model.model.encoder, model.model.projector) for p in part.parameters()}
    tuned = get_peft_model(model, lora(model_args, model, arguments.train_encoder))

    def bytes_of(parameter: nn.Parameter) -> float:
        if parameter.requires_grad or id(parameter) in in_float32:
            return 4 * parameter.numel()
        return parameter.numel() * (BYTES_PER_WEIGHT if id(parameter) in in_4_bits else dtype.itemsize)

    trained = {name: p.numel() for name, p in tuned.named_parameters() if p.requires_grad}
    block = _first_block(tuned.base_model.model.model.language_model)
    return Model(
        model.config, total, trained=sum(trained.values()), linear=sum(weight.numel() for weight in linear),
        quantized=sum(p.numel() for p in tuned.parameters() if id(p) in in_4_bits and not p.requires_grad),
        lora=sum(size for name, size in trained.items() if "lora_" in name),
        head=int(vars(text).get("head_dim") or text.hidden_size // text.num_attention_heads),
        weight_bytes=float(sum(map(bytes_of, tuned.parameters()))),
        adapted={name.rpartition(".")[2]: m.in_features for name, m in block.named_modules() if hasattr(m, "lora_A")},
    )  # fmt: skip


def activations_per_token(model: Model, lora_r: int, bf16: bool, dropout: bool) -> float:
    """Bytes that autograd keeps of one token in one block.

    Under autocast every layer with LoRA keeps a bfloat16 copy of its input; in float32 those with the same input share
    it, and `o_proj` shares attention's output. Beside them: the two norms' inputs in float32; queries, keys, values and
    output of attention with its log-sum; gate, its activation and up of the feed-forward part; LoRA's middles; under
    dropout a byte of mask for each input.
    """
    text, size = model.config.text_config, 2 if bf16 else 4
    queries, keys = (model.head * heads for heads in (text.num_attention_heads, text.num_key_value_heads))
    inputs = {("q_proj", "k_proj", "v_proj"): text.hidden_size, ("gate_proj", "up_proj"): text.hidden_size}
    inputs |= {("down_proj",): text.intermediate_size}
    shared = sum(width for layers, width in inputs.items() if any(layer in model.adapted for layer in layers))
    copies = sum(model.adapted.values())
    norms = 2 * 4 * text.hidden_size + 2 * 4
    attention = size * (2 * queries + 2 * keys) + 4 * text.num_attention_heads
    feed_forward = size * 3 * text.intermediate_size
    adapters = size * (copies if bf16 else shared) + size * lora_r * len(model.adapted)
    return float(norms + attention + feed_forward + adapters + dropout * copies)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device in training, without sharding."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        """All of it, with what is not counted."""
        return (1 + NOT_COUNTED) * float(sum(astuple(self))) + CONTEXT


def memory(model: Model, training_args: SFTConfig, model_args: ModelConfig, length: int) -> Memory:
    """Memory of the sft stage for batches of rows of `length` tokens.

    What is trained is float32: so are its gradients and AdamW's two moments. With checkpointing, each block keeps its
    input, and one block at a time is kept whole. The head works on tiles of 4,096 tokens and 32,768 words (TRL).
    """
    text, bf16 = model.config.text_config, bool(training_args.bf16)
    tokens = training_args.per_device_train_batch_size * length
    block = activations_per_token(model, model_args.lora_r, bf16, model_args.lora_dropout > 0)
    blocks = text.num_hidden_layers * block
    if training_args.gradient_checkpointing:
        blocks = text.num_hidden_layers * (2 if bf16 else 4) * text.hidden_size + block
    head = 8.0 * min(tokens, 4096) * min(text.vocab_size, 32_768)
    return Memory(model.weight_bytes, 4.0 * model.trained, 8.0 * model.trained, tokens * blocks, head)


@dataclass(frozen=True)
class Data:
    """What an epoch holds. `tokens` and `longest` are per row; `source` says where they are from."""

    questions: int
    rows: int
    recordings: int
    tokens: float
    longest: int
    source: str


def measured(arguments: ElmArguments, questions: QuestionSet, tokens_per_ecg: int, seed: int) -> Data:
    """An epoch of the sft stage of questions that are there; words are counted in characters."""
    rows = packed(dialogues(questions.train, arguments.turns, seed), arguments.questions_per_row)
    lengths = [_tokens(row, tokens_per_ecg) for row in rows]
    every = (*questions.train, *questions.test, *questions.reports)
    recordings = len({record for row in every for record in row["ecgs"]})
    source = f"{questions.name}, as it is there; a token is taken for {CHARACTERS_PER_TOKEN} characters"
    return Data(len(questions.train), len(rows), recordings, sum(lengths) / len(lengths), max(lengths), source)


def _tokens(row: Row, tokens_per_ecg: int) -> int:
    turns = sum(len(messages) for messages in (row["messages"], *row.get("others", [])))
    words = characters(row) / CHARACTERS_PER_TOKEN
    return round(len(row["ecgs"]) * tokens_per_ecg + words + TOKENS_PER_TURN * turns / 2 + TOKENS_PER_ROW)


def as_published(arguments: ElmArguments, tokens_per_ecg: int) -> Data:
    """An epoch of ECG-QA on PTB-XL as published, where it is not there; another set raises `ValueError`."""
    settings = as_mapping("dataset_args", arguments.dataset_args)
    if arguments.dataset != "ecg_qa" or settings.get("source", "ptbxl") != "ptbxl":
        raise ValueError(
            f"there is no {settings.get('root')}, and the size of {arguments.dataset} is not known without it: --plan "
            "needs the questions in place"
        )
    joined = arguments.turns * arguments.questions_per_row
    about_one = -(-(PUBLISHED_QUESTIONS // 2) // joined)
    about_two = PUBLISHED_QUESTIONS - PUBLISHED_QUESTIONS // 2
    rows = about_one + about_two
    text = PUBLISHED_CHARACTERS / CHARACTERS_PER_TOKEN + TOKENS_PER_TURN
    tokens = (PUBLISHED_QUESTIONS * text + (2 * about_two + about_one) * tokens_per_ecg) / rows + TOKENS_PER_ROW
    longest = round(max(2 * tokens_per_ecg + text, tokens_per_ecg + joined * text) * 1.25 + TOKENS_PER_ROW)
    source = (
        f"there is no {settings.get('root')}, so ECG-QA on PTB-XL as published, before any is dropped; taken to be "
        f"half about two ECGs, which are not joined, {PUBLISHED_CHARACTERS} characters each, {CHARACTERS_PER_TOKEN} "
        "to a token"
    )
    return Data(PUBLISHED_QUESTIONS, rows, PUBLISHED_RECORDS, tokens, longest, source)


def plan(arguments: ElmArguments, training: SFTConfig, model_args: ModelConfig, device: PlanArguments) -> list[str]:
    """Lines that say what a run would need."""
    name, settings = model_args.model_name_or_path, as_mapping("dataset_args", arguments.dataset_args)
    questions = questions_for(arguments, read=False) if Path(settings.get("root", ".")).is_dir() else None
    empty = skeleton(arguments, model_args, questions)
    dtype = getattr(torch, model_args.dtype) if model_args.dtype not in (None, "auto") else empty.dtype
    model, encoder = count(empty, arguments, model_args, dtype), empty.config.encoder_config
    per_ecg = model.config.max_tokens_per_ecg
    data = measured(arguments, questions, per_ecg, training.seed) if questions else as_published(arguments, per_ecg)
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    steps = training.max_steps if training.max_steps > 0 else round(-(-data.rows // batch) * training.num_train_epochs)
    checkpointing, to_align = training.gradient_checkpointing, per_ecg + TOKENS_PER_ROW + 50
    flops = steps * batch * data.tokens * flops_per_token(model, data.tokens, checkpointing)
    flops += arguments.align_steps * batch * to_align * flops_per_token(model, to_align, checkpointing)
    runs = 1 + arguments.text_only
    speed = device.plan_tflops * 1e12 * device.plan_utilization * training.world_size  # FLOPs a second
    projector = sum(p.numel() for p in empty.model.projector.parameters()) // 2  # PEFT trains a copy
    aligned = 12.0 * projector + (0 if arguments.quantization else model.total * dtype.itemsize)
    count_saved = training.save_total_limit or -(-steps // max(1, int(training.save_steps)))
    return template(Path(__file__).with_name("plan.txt.jinja")).render(
        name=name, is_published=name in LANGUAGE_MODELS, arguments=arguments, training=training, device=device,
        model=model, encoder=encoder, per_ecg=per_ecg, data=data, steps=steps, batch=batch, dtype=dtype,
        needs=memory(model, training, model_args, data.longest), bits=8 * BYTES_PER_WEIGHT, not_counted=NOT_COUNTED,
        context=CONTEXT, flops=runs * flops, hours=runs * flops / speed / 3600,
        cache=4.0 * data.recordings * encoder.max_tokens * encoder.output_dim, count_saved=count_saved,
        checkpoints=runs * count_saved * (12.0 * model.trained + (aligned if arguments.align_steps else 0.0)),
        saved=runs * model.total * dtype.itemsize,
    ).splitlines()  # fmt: skip


def flops_per_token(model: Model, length: float, checkpointing: bool) -> float:
    """FLOPs of forward and backward through frozen weights with LoRA, in rows of `length` tokens.

    Two for each weight forward, two backward to the inputs, two more for LoRA's own gradients, two to compute a
    checkpointed block again; attention reads the whole row. The head, which reads answers alone, is left out.
    """
    text, again = model.config.text_config, int(checkpointing)
    attention = 4 * length * model.head * text.num_attention_heads * text.num_hidden_layers
    return float((4 + 2 * again) * (model.linear + model.lora) + 2 * model.lora + (3 + again) * attention)

"""The parts of a run: a model built of pretrained parts with its processor, LoRA, and the collator."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, get_peft_config

from data.conversations.rows import QuestionSet
from elm.inputs.collator import EcgCollator
from elm.inputs.features import FeatureStore
from elm.inputs.processing import ElmProcessor
from elm.model import families, vocabulary
from elm.model.attention import refuse_unmasked
from elm.model.configuration import ElmConfig
from elm.model.modeling import ElmForConditionalGeneration
from elm.model.quantization import nf4, refuse_transposed
from elm.saved.arguments import ElmArguments, as_mapping
from elm.saved.run import feature_store, measured_store
from elm.training import dev, tiny
from elm.training.base import base_of, build_on, refuse_as_encoder, settled
from elm.training.hooks import attention_of
from elm.training.tiny_encoder import ENCODERS
from encoders import load_encoder, new_encoder
from encoders.base import EcgEncoder, EcgEncoderConfig, EcgFeatureExtractor
from encoders.registry import find_config


def build(
    arguments: ElmArguments, model_args: ModelConfig, questions: QuestionSet, seed: int
) -> tuple[ElmForConditionalGeneration, ElmProcessor]:
    """A model and its processor: a saved one to go on from, or a pretrained encoder and language model, joined anew."""
    if (base := base_of(model_args)) is not None:
        return build_on(base, settled(arguments, model_args), model_args)
    text_path, encoder_path = parts(arguments, model_args, questions, seed, arguments.train_condition == "none")
    torch.manual_seed(seed)  # a new encoder's weights
    encoder, extractor = _encoder(encoder_path, arguments, questions)
    language, text_config, tokenizer, ecg_token = _language(text_path, arguments, model_args)
    start = None
    if arguments.projector_type == "vocabulary":
        start = vocabulary.extend(language, tokenizer, extractor, seed)
    text_config["vocab_size"] = language.get_input_embeddings().num_embeddings
    text_config["tie_word_embeddings"] = language.config.tie_word_embeddings
    token = tokenizer.convert_tokens_to_ids(ecg_token)
    config = config_of(arguments, text_config, encoder.config, vocabulary_start=start, ecg_token_id=token)
    torch.manual_seed(seed)  # the projector's weights
    model = ElmForConditionalGeneration.from_parts(config, encoder, language)
    families.refuse_other_logits(model, language)
    processor = ElmProcessor(
        extractor,
        tokenizer,
        ecg_token=ecg_token,
        pool=arguments.projector_pool,
        measured=arguments.measured,
        measured_amplitudes=arguments.measured_amplitudes,
    )
    families.end_answers(model, tokenizer, processor.answer_ids("yes")[-1])
    return model, processor


def config_of(
    arguments: ElmArguments,
    text_config: PreTrainedConfig | Mapping[str, object],
    encoder_config: EcgEncoderConfig,
    **settings: int | None,
) -> ElmConfig:
    """Configuration of a model of these parts, with the projector that the arguments say."""
    names = ("projector_type", "projector_norm", "projector_pool", "projector_pool_mode")
    projector = {name: getattr(arguments, name) for name in names}
    return ElmConfig(text_config=text_config, encoder_config=encoder_config, **projector, **settings)


def parts(
    arguments: ElmArguments, model_args: ModelConfig, questions: QuestionSet, seed: int, text_first: bool = False
) -> tuple[str, str]:
    """Where to load the language model and the encoder from; small ones are trained, or made for `--dev`, first.

    A saved model that a run goes on from holds both. Raises `ValueError` where one is given as the encoder alone.
    """
    if (base := base_of(model_args)) is not None:
        return str(base.folder), str(base.folder)
    refuse_as_encoder(arguments.encoder)
    text, encoder, cache = model_args.model_name_or_path, arguments.encoder, Path(arguments.cache_dir)
    if arguments.dev:
        text = dev.language_model(text, model_args.model_revision, questions, cache, seed)
        return text, dev.encoder(encoder, cache, seed)
    tiny_seed = seed if arguments.tiny_seed is None else arguments.tiny_seed
    return tiny.parts(text, encoder, questions, cache, tiny_seed, text_first)


def encode_early(arguments: ElmArguments, questions: QuestionSet, seed: int, records: Sequence[str]) -> None:
    """Run a tiny encoder over recordings while another process still makes the language model."""
    if arguments.encoder not in ENCODERS or arguments.train_encoder:
        return
    cache, tiny_seed = arguments.cache_dir, seed if arguments.tiny_seed is None else arguments.tiny_seed
    path = str(tiny.encoder(questions, Path(cache), tiny_seed, arguments.encoder))
    encoder, extractor = _encoder(path, arguments, questions)
    source, key = questions.source, questions.source_key
    FeatureStore(encoder, extractor, source, key, cache, cache_gb=arguments.cache_gb).fill(records)


def _encoder(path: str, arguments: ElmArguments, questions: QuestionSet) -> tuple[EcgEncoder, EcgFeatureExtractor]:
    settings = as_mapping("encoder_args", arguments.encoder_args)
    if path == "ecg_byte":
        return load_encoder(str(vocabulary.encoder(questions, Path(arguments.cache_dir), **settings)))
    return (load_encoder if find_config(path) is None else new_encoder)(path, **settings)


def _language(
    path: str, arguments: ElmArguments, model_args: ModelConfig
) -> tuple[PreTrainedModel, dict[str, object], PreTrainedTokenizerBase, str]:
    """A language model, its configuration, its tokenizer with a chat template, and the token that stands for an ECG."""
    revision = model_args.model_revision if path == model_args.model_name_or_path else "main"
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    config = AutoConfig.from_pretrained(path, revision=revision).get_text_config()
    family = families.family_of(config)
    if arguments.quantization:
        refuse_transposed(config)
    tokenizer.chat_template = families.chat_template(tokenizer, family)
    token = families.ecg_token_of(tokenizer, family)
    model = AutoModelForCausalLM.from_pretrained(
        path,
        revision=revision,
        dtype=model_args.dtype or "auto",
        attn_implementation=model_args.attn_implementation,
        quantization_config=nf4() if arguments.quantization else None,  # of the language model alone
        device_map={"": PartialState().device} if arguments.quantization else None,
    )
    families.fit_vocabulary(model, len(tokenizer))
    return model, config.to_dict(), tokenizer, token


def lora(model_args: ModelConfig, model: ElmForConditionalGeneration, train_encoder: bool) -> LoraConfig:
    """LoRA on the language model's layers (`elm.model.families`); projector, and encoder if asked, trained in full.

    Raises `ValueError` where `lora_modules_to_save` names what cannot be.
    """
    language = model.model.language_model
    targets = families.lora_targets(language, model_args.lora_target_modules)
    more = model_args.lora_modules_to_save or []
    _check_modules(model, [name for name in more if name != "projector"], targets)
    settings = dataclasses.replace(
        model_args,
        use_peft=True,
        # The path keeps layers of the encoder that have the same names out of it.
        lora_target_modules=rf"model\.language_model\.(.*\.)?({'|'.join(targets)})",
        lora_modules_to_save=list(dict.fromkeys(["projector", *(["encoder"] if train_encoder else []), *more])),
    )
    config: LoraConfig = get_peft_config(settings)
    config.fan_in_fan_out = families.family_of(language.config).transposed
    return config


def _check_modules(model: ElmForConditionalGeneration, names: Sequence[str], targets: Sequence[str]) -> None:
    """Refuse `lora_modules_to_save` that PEFT would take for other parts than were meant, or whose training is lost."""
    for name in names:
        matches = [path for path, _ in model.named_modules() if path.endswith(name)]  # as PEFT looks for them
        if not matches:
            raise ValueError(f"lora_modules_to_save: the model has no module {name!r}")
        for path in matches:
            module = model.get_submodule(path)
            if isinstance(module, nn.Embedding) or path == "lm_head":
                reason = "holds the vocabulary, which is not trained"
            elif not path.startswith("model.language_model."):
                reason = "is not in the language model: the projector is always trained, the encoder by --train_encoder"
            elif any(inner.rpartition(".")[2] in targets for inner, _ in module.named_modules(prefix=path)):
                reason = "holds layers that LoRA is put on (lora_target_modules)"
            else:
                continue
            raise ValueError(f"lora_modules_to_save: {name!r} stands for {path}, which {reason}")


def build_collator(
    arguments: ElmArguments, model: ElmForConditionalGeneration, processor: ElmProcessor, questions: QuestionSet
) -> EcgCollator:
    """A collator over the recordings, or over the frozen encoder's cached output."""
    zero = arguments.train_condition == "zero"
    if arguments.questions_per_row > 1:
        refuse_unmasked(attention_of(model.model.language_model))
    features = None if arguments.train_encoder else feature_store(arguments, model, processor, questions, zero=zero)
    return EcgCollator(
        processor,
        questions.source,
        features,
        zero_inputs=model.model.encoder.ecg_inputs if zero and features is None else (),
        zero_token=model.model.encoder.zero_token,
        measured=None if zero else measured_store(arguments, questions),
    )

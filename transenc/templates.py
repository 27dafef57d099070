"""Pooling by a prompt: a template around every text, whose mask token gives the vector."""

from __future__ import annotations

import json
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import PreTrainedTokenizerFast

from transenc.errors import InputError

_BEFORE, _AFTER = "template: before the text", "template: after the text"


def install_template(model: SentenceTransformer, template: str) -> None:
    """Put a prompt around every text, and take the vector of its mask token (PromptBERT, Jiang et al., EMNLP 2022).

    The prompt goes into the tokenizer's own post-processor, for single texts, and the pooling becomes `lasttoken`: the
    saved folder is an ordinary one. A text that is too long is cut, the prompt never. Pairs, which a cross-encoder
    reads, stay as they are.

    Args:
        model: A bi-encoder of a transformer and a pooling, changed in place.
        template: {} for the text, and at its end the mask token, as such or as {mask}.

    Raises:
        InputError: A template of another form; a tokenizer without a mask token or without a template of its own
            (TemplateProcessing); a model that has a template already, or other modules.

    Example:
        >>> install_template(load_bi_encoder("my/lm", pooling="cls"), 'This: "{}" means {mask}')  # doctest: +SKIP
    """
    transformer: Any = model[0]
    tokenizer = model.tokenizer
    mask = tokenizer.mask_token
    if mask is None:
        raise InputError(f"template {template!r} needs a mask token, and the model's tokenizer has none")
    before, _, after = (part.strip() for part in template.replace("{mask}", mask).partition("{}"))
    if not after.endswith(mask):
        raise InputError(f"template must end in the mask token {mask} (or {{mask}}), found {template!r}")
    if len(model) != 2 or not isinstance(transformer, Transformer) or not isinstance(model[1], Pooling):
        raise InputError("a template needs a model of a transformer and a pooling; leave template out")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = {} if backend is None else json.loads(backend.to_str())
    processor = state.get("post_processor") or {"type": "none"}
    steps = [step for step in processor.get("processors", [processor]) if step["type"] == "TemplateProcessing"]
    if backend is None or not steps:
        raise InputError(
            f"a template needs a fast tokenizer with TemplateProcessing, found {processor['type']}; leave template out"
        )
    step = steps[0]
    if _AFTER in step["special_tokens"]:
        raise InputError("the model has a template already, which its tokenizer keeps; leave template out")
    single = step["single"][: next(i for i, piece in enumerate(step["single"]) if "Sequence" in piece) + 1]
    for name, text, place in ((_BEFORE, before, len(single) - 1), (_AFTER, after, len(single) + 1)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        if ids:  # one special token may stand for several ids
            step["special_tokens"][name] = {"id": name, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)}
            single.insert(place, {"SpecialToken": {"id": name, "type_id": 0}})
    step["single"] = single
    # a tokenizer class of a model's own (BertTokenizer) builds its post-processor anew when it is loaded
    transformer.processor = PreTrainedTokenizerFast(
        tokenizer_object=type(backend).from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )
    model[1] = Pooling(transformer.get_embedding_dimension(), "lasttoken")

"""Model folders before they are loaded: find them, say what they hold, refuse what is incomplete or changed.

Nothing here imports torch: a run digests its start models before it loads any of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from transenc import durable
from transenc.errors import InputError, StateError

Kind = Literal["bi", "cross", "plain"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.spm", "*.bpe"]
_HUB_IGNORED = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]
_HUB_TIMEOUT = 5.0
_TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "spm.model"),
    *("sentencepiece.bpe.model", "bpe.codes", "vocab.spm"),
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_SENTENCE_TRANSFORMERS_FILES = ("config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling")


def find_model_folder(name: str | Path) -> Path:
    """Return the local folder of a model: the folder itself, or the cached copy of a Hub model.

    A local folder wins over a Hub id; a Hub model that is already in the cache is used without asking the Hub.

    Args:
        name: A folder, or a Hub id ("owner/name", or "name" for the well-known owners).

    Returns:
        The folder with symbolic links resolved.

    Raises:
        InputError: No such folder, no such Hub model, or the Hub cannot be reached.

    Example:
        >>> find_model_folder("./no/such/folder")
        Traceback (most recent call last):
        ...
        transenc.errors.InputError: no such model folder: ./no/such/folder; give a folder, or a Hub id (owner/name)
    """
    if not str(name).strip():
        raise InputError("no model given: expected a folder or a Hub id such as owner/name, found an empty name")
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise InputError(f"{name} is a file; expected the folder of a model, or a Hub id such as owner/name")
    # "runs/mine" with a folder "runs" here is a path with a typing error, not a question for the Hub.
    typed_path = len(path.parts) > 1 and path.parent.is_dir()
    if isinstance(name, Path) or typed_path or not _HUB_ID.fullmatch(name):
        raise InputError(f"no such model folder: {name}; give a folder, or a Hub id (owner/name)")
    return _find_hub_model(name)


def detect_kind(name: str | Path) -> Kind:
    """Say what a model folder holds: a bi-encoder, a trained cross-encoder, or a plain Hugging Face model.

    Args:
        name: A folder or a Hub id.

    Returns:
        "bi" (sentence-transformers bi-encoder), "cross" (a sequence-classification head), or "plain".

    Raises:
        InputError: Not a model folder, or a model of another kind (a sparse or multi-vector encoder).
        StateError: One of its JSON files cannot be read.
    """
    folder = find_model_folder(name)
    if (folder / "modules.json").exists():
        facts = _read_facts(folder, "config_sentence_transformers.json", required=False)
        kind = facts.get("model_type", "SentenceTransformer")
        if kind not in ("SentenceTransformer", "CrossEncoder"):
            raise InputError(f"{name} is a {kind}; expected a bi-encoder (SentenceTransformer) or a CrossEncoder")
        return "cross" if kind == "CrossEncoder" else "bi"
    if not (folder / "config.json").exists():
        raise InputError(f"{name} is not a model folder: neither modules.json nor config.json is in it")
    architectures = _read_facts(folder, "config.json").get("architectures") or [""]
    return "cross" if str(architectures[0]).endswith("ForSequenceClassification") else "plain"


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that is incomplete, holds pickled weights only, or differs from what was published.

    Weight files are checked as files: there, not empty, a whole header, as long as the header says.

    Args:
        folder: A local model folder with links resolved.

    Raises:
        InputError: The weights are in a pickle format, or there is no language model (static embeddings).
        StateError: A file is missing, truncated or changed.
    """
    _verify_published(folder)
    transformer, modules = folder / transformer_subfolder(folder), _read_modules(folder)
    first = modules[0]["type"].rpartition(".")[2] if modules else "Transformer"
    if first != "Transformer" and not (transformer / "config.json").exists():
        raise InputError(f"{folder} begins with {first}; expected a model that begins with a Transformer")
    _read_facts(transformer, "config.json")
    _check_weights(transformer)
    if not any((transformer / name).exists() for name in _TOKENIZER_FILES):
        raise StateError(f"{folder}: no tokenizer files (such as tokenizer.json or vocab.txt); fetch the model again")
    for module in modules[1:]:
        place = folder / module["path"]
        if place != folder and place.is_dir() and any(_pickles(place)) and not any(place.glob("*.safetensors")):
            _refuse_pickle(place)


def transformer_subfolder(folder: Path) -> str:
    """Return the subfolder of the language model, "" in most folders ("0_Transformer" in old ones).

    Args:
        folder: A local model folder.

    Returns:
        A path relative to `folder`.

    Raises:
        StateError: modules.json cannot be read.
    """
    modules = _read_modules(folder)
    return modules[0]["path"] if modules else ""


def extra_modules(folder: Path) -> list[str]:
    """List the modules of a sentence-transformers folder beyond language model, pooling and normalisation.

    Args:
        folder: A local model folder.

    Returns:
        Their class names, such as ["Dense"].
    """
    classes = [module["type"].rsplit(".", 1)[-1] for module in _read_modules(folder)]
    return [name for name in classes if name not in ("Transformer", "Pooling", "Normalize")]


def looks_stripped(folder: Path) -> bool:
    """Say whether a folder without modules.json was a sentence-transformers folder once.

    Args:
        folder: A local model folder.

    Returns:
        True when other files of the format are left.
    """
    return not (folder / "modules.json").exists() and any(
        (folder / name).exists() for name in _SENTENCE_TRANSFORMERS_FILES
    )


def lowers_case(folder: Path) -> bool:
    """Return the lower-casing setting of a sentence-transformers folder, False when there is none.

    Args:
        folder: The folder of the language model.

    Returns:
        The value of `do_lower_case`.
    """
    return bool(_read_facts(folder, "sentence_bert_config.json", required=False).get("do_lower_case", False))


def declared_length(folder: Path) -> int | None:
    """Return the length a sentence-transformers folder of the old layout sets; new ones leave it to the tokenizer.

    Args:
        folder: The folder of the language model.

    Returns:
        Tokens, or None.
    """
    length = _read_facts(folder, "sentence_bert_config.json", required=False).get("max_seq_length")
    return length if isinstance(length, int) and length > 0 else None


def model_digest(name: str | Path) -> str:
    """Return what identifies a model's content, for the record of a run.

    Args:
        name: A folder or a Hub id.

    Returns:
        The sha256 over the paths and contents of a local folder's files (hidden files aside), 64 hex digits;
        "hub:<id>@<revision>" for a Hub model.

    Raises:
        InputError: No such model.
    """
    folder = find_model_folder(name)
    if not Path(name).expanduser().is_dir():
        return f"hub:{name}@{folder.name}"
    total = hashlib.sha256()
    for path in _list_files(folder):
        total.update(f"{path.relative_to(folder).as_posix()}\0{durable.sha256_file(path)}\n".encode())
    return total.hexdigest()


def encoder_fingerprint(name: str | Path, *, pooling: str | None, max_length: int) -> str:
    """Return what decides an encoder's vectors: an index built with one fingerprint is not asked with another.

    It covers weights, tokenizer, configuration (prompts too), pooling and length; not the model card, nor where
    the folder lies: a copy, or the Hub's, has the same.

    Args:
        name: A folder or a Hub id.
        pooling: As for `load_bi_encoder`.
        max_length: The length in use, in tokens.

    Returns:
        A sha256, 64 hex digits.

    Raises:
        InputError: No such model.
    """
    folder = find_model_folder(name)
    total = hashlib.sha256(f"{pooling}\0{max_length}\n".encode())
    for path in _list_files(folder):
        relative = path.relative_to(folder)
        wanted = any(relative.match(pattern) for pattern in _HUB_FILES) and relative.name != durable.MANIFEST
        if wanted and relative.parts[0] not in ("onnx", "openvino"):
            total.update(f"{relative.as_posix()}\0{durable.sha256_file(path)}\n".encode())
    return total.hexdigest()


def _find_hub_model(name: str) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    # As sentence-transformers does: a name without an owner is looked for at the well-known owners first.
    ids = [name] if "/" in name else [f"sentence-transformers/{name}", f"cross-encoder/{name}", name]
    for model_id in ids:
        try:
            cached = Path(snapshot_download(model_id, local_files_only=True, allow_patterns=_HUB_FILES))
        except LocalEntryNotFoundError:
            continue
        if any(cached.rglob("*.safetensors")):  # not one that an interrupted download left
            return cached.resolve()
    advice = f"no model folder {name} here; give an existing folder, or fetch that Hub model where there is network"
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{advice} (HF_HUB_OFFLINE is set and the Hub cache does not have it)")
    for model_id in ids:
        try:
            # One plain request with a short limit: `snapshot_download` and `from_pretrained` try again for
            # more than a minute when there is no network.
            revision = HfApi().model_info(model_id, timeout=_HUB_TIMEOUT).sha
            folder = snapshot_download(
                model_id, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED
            )
        except RepositoryNotFoundError:
            continue
        except Exception as error:  # the HTTP library's errors share no public base class
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            raise InputError(f"{advice} (the Hub gave no answer: {reason})") from None
        return Path(folder).resolve()
    raise InputError(f"no model folder {name} here, and no model of that name on the Hub (or a private one)")


def _verify_published(folder: Path) -> None:
    """Compare the digests of a folder that this package published, alone or as `model-<i>` of a stage."""
    if durable.is_published(folder):
        durable.verify_directory(folder)
    elif durable.is_published(folder.parent):
        manifest = durable.read_json(folder.parent / durable.MANIFEST)
        try:
            listed = {k: v["sha256"] for k, v in manifest["files"].items() if k.startswith(f"{folder.name}/")}
        except (TypeError, KeyError, AttributeError):
            raise StateError(f"{folder.parent / 'MANIFEST.json'}: not a manifest; restore the folder") from None
        found = {path.relative_to(folder.parent).as_posix(): path for path in _list_files(folder)}
        for name in sorted(listed.keys() | found.keys()):
            if name not in found:
                raise StateError(f"{folder.parent}: {name} is missing; restore the folder")
            if name not in listed:
                raise StateError(
                    f"{folder.parent}: {name} is not in {durable.MANIFEST}; remove it or restore the folder"
                )
            if durable.sha256_file(found[name]) != listed[name]:
                raise StateError(f"{folder.parent}: {name} differs from {durable.MANIFEST}; restore the folder")


def _list_files(folder: Path) -> list[Path]:
    """All files below, in one order on every system, hidden ones aside."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path: path.relative_to(folder) for path in files}
    visible = [p for p in files if not any(part.startswith(".") for part in names[p].parts)]
    return sorted(visible, key=lambda path: names[path].as_posix())


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.exists():
        weights = _read_facts(folder, index.name).get("weight_map", {})
        names = sorted({str(name) for name in weights.values()})
    else:
        names = ["model.safetensors"]
    if not index.exists() and not (folder / names[0]).exists() and any(_pickles(folder)):
        _refuse_pickle(folder)
    for name in names or [index.name]:
        path = folder / name
        if not path.exists():
            raise StateError(f"{path} is missing; fetch the model again")
        try:
            with safe_open(path, framework="numpy"):  # checks the header against the length of the file
                pass
        except (SafetensorError, OSError, ValueError) as error:
            size = path.stat().st_size
            raise StateError(f"{path}: damaged weights ({size} bytes): {error}; fetch the model again") from None


def _pickles(folder: Path) -> list[Path]:
    return [path for pattern in _PICKLES for path in folder.glob(pattern)]


def _refuse_pickle(folder: Path) -> None:
    raise InputError(
        f"{folder}: the weights are only in a pickle format ({_pickles(folder)[0].name}), which can run code when it "
        "is opened; convert them to safetensors (save_pretrained of transformers, on a machine you can spare)"
    )


def _read_modules(folder: Path) -> list[dict[str, str]]:
    if not (folder / "modules.json").exists():
        return []
    modules = _read_json(folder / "modules.json")
    try:
        entries = [{"path": str(entry["path"]), "type": str(entry["type"])} for entry in modules]
    except (TypeError, KeyError):
        raise StateError(f"{folder / 'modules.json'}: not a list of modules; fetch the model again") from None
    if any(Path(entry["path"]).is_absolute() or ".." in Path(entry["path"]).parts for entry in entries):
        raise StateError(f"{folder / 'modules.json'}: a module's path leads out of the folder")
    return entries


def _read_facts(folder: Path, name: str, *, required: bool = True) -> dict[str, Any]:
    path = folder / name
    if not path.exists() and not required:
        return {}
    facts = _read_json(path)
    if not isinstance(facts, dict):
        raise StateError(f"{path}: expected a JSON object, found {type(facts).__name__}; fetch the model again")
    return facts


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StateError(f"{path} is missing; fetch the model again") from None
    except (OSError, ValueError) as error:
        raise StateError(f"{path}: cannot be read as JSON: {error}; fetch the model again") from None

"""Model folders are found, verified against what was published, and identified; the Hub is asked once."""

from __future__ import annotations

import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from transenc import durable
from transenc.encoders import load_bi_encoder, load_cross_encoder, load_encoder
from transenc.errors import InputError, StateError
from transenc.model_folders import encoder_fingerprint, find_model_folder, model_digest

SENTENCES = ["the small cat sees the dog today", "a bird", "the old farmer sells the bread at the market"]


# ---- published folders


def test_the_digests_of_a_stage_are_checked(tiny_bi: Path, tiny_bi_b: Path, tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "c01-40-bi-train"
    stage.parent.mkdir()
    with durable.publish_directory(stage) as folder:
        shutil.copytree(tiny_bi, folder / "model-0")
        shutil.copytree(tiny_bi_b, folder / "model-1")
    durable.replace_symlink(tmp_path / "best", "stages/c01-40-bi-train/model-0")
    expected = load_bi_encoder(tiny_bi).encode(SENTENCES).tolist()
    assert load_bi_encoder(tmp_path / "best").encode(SENTENCES).tolist() == expected
    _flip(stage / "model-1" / "model.safetensors")
    assert load_bi_encoder(tmp_path / "best").encode(SENTENCES).tolist() == expected  # only its own files are read
    _flip(stage / "model-0" / "model.safetensors")
    with pytest.raises(StateError, match=r"model-0/model.safetensors differs from MANIFEST.json"):
        load_bi_encoder(tmp_path / "best")
    with pytest.raises(StateError, match=r"differs from MANIFEST.json"):
        load_cross_encoder(tmp_path / "best", new_head=True)


def test_files_lost_from_or_added_to_a_stage_are_refused(tiny_bi: Path, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    with durable.publish_directory(stage) as folder:
        shutil.copytree(tiny_bi, folder / "model-0")
    (stage / "model-0" / "extra.json").write_text("{}")
    with pytest.raises(StateError, match=r"model-0/extra.json is not in MANIFEST.json"):
        load_bi_encoder(stage / "model-0")
    (stage / "model-0" / "extra.json").rename(stage / "model-0" / "tokenizer.json")
    (stage / "model-0" / "README.md").unlink()
    with pytest.raises(StateError, match=r"model-0/README.md is missing"):
        load_bi_encoder(stage / "model-0")


def test_a_folder_published_by_itself_is_checked(tiny_bi: Path, tmp_path: Path) -> None:
    with durable.publish_directory(tmp_path / "model") as folder:
        shutil.copytree(tiny_bi, folder, dirs_exist_ok=True)
    assert load_bi_encoder(tmp_path / "model").max_seq_length == 64
    _flip(tmp_path / "model" / "model.safetensors")
    with pytest.raises(StateError, match=r"model.safetensors"):
        load_bi_encoder(tmp_path / "model")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# ---- names


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "a/b/c", "no such", "../up", "owner/", "a\nb"])
def test_what_is_no_folder_and_no_hub_id(name: str) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        load_encoder(name)


def test_a_path_with_a_typing_error_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such model folder: runs/mine"):
        load_encoder("runs/mine")


def test_other_things_that_are_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; expected the folder of a model"):
        load_encoder(tmp_path / "file")
    with pytest.raises(InputError, match=r"not a model folder: neither modules.json nor config.json"):
        load_encoder(tmp_path)
    with pytest.raises(InputError, match="found an empty name"):
        load_encoder("")


def test_static_embeddings_are_refused_by_name(tiny_bi: Path, tmp_path: Path) -> None:
    tokenizer = SentenceTransformer(str(tiny_bi), device="cpu").tokenizer.backend_tokenizer
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu").save(str(tmp_path / "m"))
    with pytest.raises(InputError, match=r"m begins with StaticEmbedding; expected a model that begins with a Trans"):
        load_bi_encoder(tmp_path / "m", device="cpu")


def test_a_local_folder_wins_over_the_hub(tiny_bi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_bi, tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert find_model_folder("owner/name") == (tmp_path / "owner" / "name").resolve()
    assert load_encoder("owner/name").max_seq_length == 64


def test_a_hub_id_offline_fails_with_advice() -> None:
    with pytest.raises(InputError, match=r"no model folder owner/name here; .*HF_HUB_OFFLINE is set"):
        load_encoder("owner/name")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A Hub on this machine that is out of order; yields the requests it gets."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            missing = "missing" in self.path
            self.send_response(404 if missing else 503)
            if missing:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield requests
        server.shutdown()


def test_the_hub_is_asked_once(hub: list[str]) -> None:
    with pytest.raises(InputError, match=r"no model folder owner/name here; .*the Hub gave no answer: .*503"):
        load_encoder("owner/name")
    assert hub == ["/api/models/owner/name"]


def test_a_name_without_an_owner_is_looked_for_at_the_known_owners(hub: list[str]) -> None:
    with pytest.raises(InputError, match="no model of that name on the Hub"):
        load_encoder("missing")
    owners = ("sentence-transformers/", "cross-encoder/", "")
    assert hub == [f"/api/models/{owner}missing" for owner in owners]


def test_without_network_a_hub_id_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"the Hub gave no answer: ConnectError"):
        load_encoder("owner/name")


def test_a_cached_hub_model_is_used_without_asking(tiny_bi: Path, hub: list[str]) -> None:
    cache, revision = Path(constants.HF_HUB_CACHE) / "models--owner--name", "0123456789abcdef" * 2 + "01234567"
    shutil.copytree(tiny_bi, cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    expected = load_bi_encoder(tiny_bi).encode(SENTENCES).tolist()
    assert load_encoder("owner/name").encode(SENTENCES).tolist() == expected
    assert model_digest("owner/name") == f"hub:owner/name@{revision}"
    assert hub == []


# ---- digests


def test_the_digest_covers_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_text("two")
    (folder / "sub" / "a.txt").write_text("one")
    (folder / ".cache").write_text("ignored")
    one, two = (hashlib.sha256(text.encode()).hexdigest() for text in ("one", "two"))
    expected = hashlib.sha256(f"b.txt\0{two}\nsub/a.txt\0{one}\n".encode()).hexdigest()
    assert model_digest(folder) == expected
    assert model_digest(shutil.copytree(folder, tmp_path / "b")) == expected
    (folder / "b.txt").rename(folder / "c.txt")
    assert model_digest(folder) != expected


# ---- what decides the vectors


def test_a_fingerprint_changes_with_what_decides_the_vectors_and_with_nothing_else(
    tiny_bi: Path, tmp_path: Path
) -> None:
    def fingerprint(folder: Path = tiny_bi, pooling: str | None = None, max_length: int = 64) -> str:
        return encoder_fingerprint(folder, pooling=pooling, max_length=max_length)

    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_bi, copy)
    (copy / "README.md").write_text("another model card", encoding="utf-8")
    (copy / "notes.bin").write_bytes(b"not read by anybody")
    assert fingerprint(copy) == fingerprint()
    assert len({fingerprint(), fingerprint(max_length=32), fingerprint(pooling="cls")}) == 3
    for name in ("model.safetensors", "tokenizer.json", "1_Pooling/config.json", "config_sentence_transformers.json"):
        changed = tmp_path / name.replace("/", "-")
        shutil.copytree(tiny_bi, changed)
        _flip(changed / name)
        assert fingerprint(changed) != fingerprint(), name

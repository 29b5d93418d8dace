"""The test Hub speaks to the real client: what goes up comes back, and what is broken on purpose fails as in reality."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx2
import pytest
import torch
from hub import OTHER_TOKEN, READ_TOKEN, STORAGE_LIMIT, WRITE_TOKEN, HubServer
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _xet, get_session
from transformers import LlamaConfig, LlamaForCausalLM

REPO = "me/tiny"
FLOATS = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
LOAD = """
import hashlib
from transformers import AutoModelForCausalLM
for revision in ("main", "later"):
    state = AutoModelForCausalLM.from_pretrained("me/tiny", revision=revision).state_dict()
    print(hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest())
"""


@pytest.fixture
def server():
    with HubServer() as server:
        yield server
        assert server.violations == []


@pytest.fixture(autouse=True)
def client(monkeypatch, tmp_path, server):
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "50ms")
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    settings = {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    settings |= {"ENDPOINT": server.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template}
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    impatient = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", impatient)


@pytest.fixture(params=["xet", "lfs"])
def protocol(request, monkeypatch, client):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return request.param


@pytest.fixture
def api(server):
    api = HfApi(endpoint=server.endpoint, token=WRITE_TOKEN)
    api.create_repo(REPO)
    return api


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model", seed=0)


def save_model(folder, seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=96, num_hidden_layers=2, **sizes)).save_pretrained(folder)
    (folder / "plots").mkdir()
    (folder / "plots" / "trim.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    (folder / "README.md").write_text("---\nlicense: mit\nlibrary_name: transformers\n---\n# A tiny model\n")
    return folder


def read_folder(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def add(api, path, content, **options):
    return api.create_commit(REPO, [CommitOperationAdd(path, content)], commit_message=f"Add {path}", **options)


@contextmanager
def raises_status(status, error=HfHubHTTPError):
    with pytest.raises(error) as raised:
        yield raised
    assert raised.value.response.status_code == status


# --- what goes up comes back ---


def test_a_folder_arrives_byte_for_byte(server, api, folder, protocol, tmp_path):
    commit = api.upload_folder(repo_id=REPO, folder_path=folder)
    repo = server.repo(REPO)
    files = repo.files("main")
    assert files.pop(".gitattributes")
    assert files == read_folder(folder)
    assert repo.head("main") == commit.oid and len(repo.commits("main")) == 2
    assert len(server.requests("xorb")) == (1 if protocol == "xet" else 0)
    assert len(server.requests("put")) == (0 if protocol == "xet" else 2)
    copy = api.snapshot_download(REPO, local_dir=tmp_path / "copy", cache_dir=tmp_path / "cache")
    assert all((tmp_path / "copy" / path).read_bytes() == content for path, content in repo.files().items()), copy
    assert len(server.requests("xorb-download")) == (2 if protocol == "xet" else 0)


def test_unchanged_files_are_not_committed_again(server, api, folder, protocol):
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    num_bytes = server.num_uploaded_bytes
    assert 0 < num_bytes
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    assert len(server.requests("commit")) == 1
    assert server.num_uploaded_bytes == num_bytes


def test_from_pretrained_in_a_fresh_process_loads_main_and_a_branch(server, api, folder, protocol, tmp_path):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    api.create_branch(REPO, branch="later")
    later = save_model(tmp_path / "later", seed=1)
    api.upload_folder(repo_id=REPO, folder_path=later, revision="later")
    expected = [hash_weights(folder), hash_weights(later)]
    assert expected[0] != expected[1]
    environment = os.environ | server.environment(tmp_path / "home", READ_TOKEN, xet=protocol == "xet")
    output = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.split() == expected
    assert bool(server.requests("reconstruction")) == (protocol == "xet")


def hash_weights(folder):
    state = LlamaForCausalLM.from_pretrained(folder).state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def test_xet_reads_every_compression_of_its_chunks(server, api, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    content = {"random.bin": os.urandom(200_000), "text.bin": b"drop a layer\n" * 20_000, "floats.bin": FLOATS}
    operations = [CommitOperationAdd(path, data) for path, data in content.items()]
    api.create_commit(REPO, operations, commit_message="Three kinds of data")
    schemes = {chunk.scheme for xorb in server.storage.xorbs.values() for chunk in xorb.chunks}
    assert schemes == {0, 1, 2}  # stored, LZ4, LZ4 of grouped bytes
    for path, data in content.items():
        assert server.repo(REPO).files()[path] == data
        downloaded = api.hf_hub_download(REPO, path, cache_dir=tmp_path)
        assert open(downloaded, "rb").read() == data
    assert len(server.requests("reconstruction")) == 3


def test_large_files_can_come_in_parts(server, api):
    server.multipart_bytes = 150_000
    add(api, "floats.bin", FLOATS)
    assert server.repo(REPO).files()["floats.bin"] == FLOATS
    assert len(server.requests("put")) == 3 and len(server.requests("complete")) == 1


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git itself")
def test_ids_are_those_of_git(server, api, folder, tmp_path):
    (folder / "plots-old.txt").write_text("git sorts this before the folder plots/")
    api.upload_folder(repo_id=REPO, folder_path=folder)
    git = tmp_path / "git"
    subprocess.run(["git", "init", "-q", git], check=True)
    for path, blob in server.repo(REPO).find("main").blobs.items():
        (git / path).parent.mkdir(exist_ok=True)
        (git / path).write_bytes(blob.pointer if blob.is_lfs else blob.content)
    (git / ".gitattributes").unlink()  # its filters need git-lfs
    api.delete_file(".gitattributes", REPO)
    subprocess.run(["git", "-C", git, "add", "."], check=True)
    listing = subprocess.run(
        ["git", "-C", git, "write-tree"], check=True, capture_output=True, text=True
    ).stdout.strip()
    listing = subprocess.run(["git", "-C", git, "ls-tree", "-rt", listing], check=True, capture_output=True, text=True)
    expected = {line.split("\t")[1]: line.split()[2] for line in listing.stdout.splitlines()}
    entries = api.list_repo_tree(REPO, recursive=True)
    assert {entry.path: getattr(entry, "blob_id", None) or entry.tree_id for entry in entries} == expected


def test_information_lists_files_card_and_rights(server, api, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    info = api.model_info(REPO, files_metadata=True)
    weights = next(file for file in info.siblings if file.rfilename == "model.safetensors")
    assert weights.size == weights.lfs.size == (folder / "model.safetensors").stat().st_size
    assert (info.sha, info.card_data.license) == (server.repo(REPO).head(), "mit")
    assert set(info.tags) >= {"transformers", "license:mit"} and info.config["model_type"] == "llama"
    assert api.model_info(REPO, expand=["sha"]).siblings is None
    server.page_size = 2
    assert sorted(api.list_repo_files(REPO)) == sorted(server.repo(REPO).files())
    assert [entry.path for entry in api.list_repo_tree(REPO, "plots")] == ["plots/trim.png"]
    assert {entry.path for entry in api.get_paths_info(REPO, ["plots", "config.json", "no"])} == {
        "config.json",
        "plots",
    }
    assert HfApi(endpoint=server.endpoint, token=READ_TOKEN).whoami()["auth"]["accessToken"]["role"] == "read"
    api.auth_check(REPO)


# --- branches, tags, parents ---


def test_a_commit_on_a_branch_leaves_main_alone(server, api):
    main = server.repo(REPO).head()
    api.create_branch(REPO, branch="checkpoints/100")
    add(api, "a.txt", b"a", revision="checkpoints/100")
    assert server.repo(REPO).head() == main
    assert server.repo(REPO).files("checkpoints/100")["a.txt"] == b"a"
    assert [commit.title for commit in api.list_repo_commits(REPO, revision="checkpoints/100")] == [
        "Add a.txt",
        "initial commit",
    ]
    with raises_status(409):
        api.create_branch(REPO, branch="checkpoints/100")
    api.create_branch(REPO, branch="checkpoints/100", exist_ok=True)
    api.delete_branch(REPO, branch="checkpoints/100")
    assert list(server.repo(REPO).branches) == ["main"]
    with raises_status(404, RevisionNotFoundError):
        add(api, "a.txt", b"a", revision="checkpoints/100")


def test_a_tag_keeps_its_commit(server, api):
    first = add(api, "a.txt", b"1").oid
    api.create_tag(REPO, tag="v1")
    add(api, "a.txt", b"2")
    assert server.repo(REPO).tags == {"v1": first}
    assert server.repo(REPO).files("v1")["a.txt"] == b"1"
    assert [(tag.name, tag.target_commit) for tag in api.list_repo_refs(REPO).tags] == [("v1", first)]
    with raises_status(409):
        api.create_tag(REPO, tag="v1")
    api.create_tag(REPO, tag="v1", exist_ok=True)
    api.delete_tag(REPO, tag="v1")
    assert server.repo(REPO).tags == {}


def test_a_stale_parent_is_refused(server, api, protocol):
    start = server.repo(REPO).head()
    first = add(api, "a.bin", b"1", parent_commit=start).oid
    with raises_status(412):
        add(api, "a.bin", b"2", parent_commit=start)
    assert server.repo(REPO).head() == first
    add(api, "a.bin", b"2", parent_commit=first)
    assert server.repo(REPO).files()["a.bin"] == b"2"


def test_files_and_folders_are_deleted(server, api, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    api.delete_folder("plots", REPO)
    api.delete_file("README.md", REPO)
    assert not {"plots/trim.png", "README.md"} & set(server.repo(REPO).files())
    with raises_status(404, RemoteEntryNotFoundError):
        api.delete_file("README.md", REPO)
    api.delete_repo(REPO)
    assert server.repos == {}


# --- who may do what ---


def test_an_unknown_token_is_refused_everywhere(server, api):
    stranger = HfApi(endpoint=server.endpoint, token="hf_wrong")
    calls = [stranger.whoami, lambda: stranger.create_repo("x"), lambda: stranger.model_info(REPO)]
    calls += [lambda: add(stranger, "a.txt", b"a"), lambda: stranger.list_repo_refs(REPO)]
    for call in calls:
        with raises_status(401):
            call()
    assert len(server.repo(REPO).commits()) == 1


def test_a_read_token_reads_but_does_not_write(server, api, protocol):
    add(api, "a.bin", b"1")
    reader = HfApi(endpoint=server.endpoint, token=READ_TOKEN)
    assert reader.file_exists(REPO, "a.bin")
    for call in (
        lambda: add(reader, "a.bin", b"2"),
        lambda: reader.create_repo("x"),
        lambda: reader.auth_check(REPO, write=True),
    ):
        with raises_status(403):
            call()
    assert server.repo(REPO).files()["a.bin"] == b"1"


def test_a_foreign_repo_can_be_seen_but_not_changed(server, api):
    other = HfApi(endpoint=server.endpoint, token=OTHER_TOKEN)
    for call in (
        lambda: add(other, "a.txt", b"a"),
        lambda: other.create_tag(REPO, tag="v1"),
        lambda: other.create_repo("me/x"),
    ):
        with raises_status(403):
            call()
    assert other.create_repo(REPO, exist_ok=True).repo_id == REPO  # so this proves no right to write
    api.update_repo_settings(REPO, gated="auto")
    with raises_status(403, GatedRepoError):
        other.hf_hub_download(REPO, ".gitattributes")
    api.update_repo_settings(REPO, visibility="private")
    with raises_status(404, RepositoryNotFoundError):
        other.model_info(REPO)
    with raises_status(401, RepositoryNotFoundError):
        HfApi(endpoint=server.endpoint, token=False).model_info(REPO)


def test_namespaces_are_the_user_and_the_organizations(server, api):
    assert api.create_repo("bare", private=True).repo_id == "me/bare"
    assert api.create_repo("lab/shared").repo_id == "lab/shared"
    assert server.repo("me/bare").private and not server.repo("lab/shared").private
    with raises_status(409):
        api.create_repo("lab/shared")


# --- what the server refuses ---

CARDS = {
    "license: bespoke": '"license" must be one of',
    "base_model: ./out/checkpoint-5": '"base_model" with value "./out/checkpoint-5" is not valid',
    'base_model: ""': '"base_model" is not allowed to be empty',
    "datasets: [/data/x/]": '"datasets[0]" with value "/data/x/" is not valid',
    "model-index: {}": '"model-index" must be an array',
    "model-index: [{name: a}]": '"model-index[0].results" is required',
    "model-index: [{name: a, results: [{task: {type: b}, dataset: {type: c, name: d}}]}]": "must be an array",
    "license: [": "Invalid YAML in README.md",
    "- license": '"value" must be of type object',
}


def post(server, path, **options):
    return get_session().post(server.endpoint + path, headers={"Authorization": f"Bearer {WRITE_TOKEN}"}, **options)


def post_commit(server, key, **value):
    lines = [{"key": "header", "value": {"summary": "By hand"}}, {"key": key, "value": value}]
    return post(
        server, f"/api/models/{REPO}/commit/main", content="\n".join(json.dumps(line) for line in lines).encode()
    )


@pytest.mark.parametrize("metadata", CARDS)
def test_a_card_with_wrong_metadata_is_refused(server, api, metadata):
    card = f"---\n{metadata}\n---\n# Card\n".encode()
    with pytest.raises(ValueError, match=re.escape(CARDS[metadata])):
        add(api, "README.md", card)
    refused = post_commit(server, "file", path="README.md", content=base64.b64encode(card).decode(), encoding="base64")
    assert refused.status_code == 400 and CARDS[metadata] in refused.json()["errors"][0]["message"]
    assert len(server.repo(REPO).commits()) == 1


def test_a_good_card_is_accepted(server, api):
    results = [EvalResult("text-generation", "wikitext", "WikiText", "perplexity", 12.5)]
    data = ModelCardData(license="mit", base_model="HuggingFaceTB/SmolLM2-135M", model_name="t", eval_results=results)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n# Card\n")
    card.validate()
    add(api, "README.md", str(card).encode())
    assert ModelCard.load(REPO, token=READ_TOKEN).data.eval_results == results
    assert api.model_info(REPO).card_data.base_model == "HuggingFaceTB/SmolLM2-135M"


def test_a_large_file_must_be_in_the_storage_before_the_commit(server, api):
    refused = post_commit(server, "lfsFile", path="a.bin", algo="sha256", oid="0" * 64, size=1)
    assert refused.status_code == 400 and "does not exist" in refused.json()["error"]
    assert len(server.repo(REPO).commits()) == 1


def test_the_storage_refuses_false_content_and_unsigned_urls(server, api):
    row = {"oid": "0" * 64, "size": 3}
    batch = post(server, f"/{REPO}.git/info/lfs/objects/batch", json={"transfers": ["basic"], "objects": [row]}).json()
    actions = batch["objects"][0]["actions"]
    assert get_session().put(actions["upload"]["href"], content=b"abc").status_code == 400
    assert get_session().put(actions["upload"]["href"].partition("?")[0], content=b"abc").status_code == 403
    assert post(server, actions["verify"]["href"].removeprefix(server.endpoint), json=row).status_code == 404
    assert get_session().post(f"{server.storage.endpoint}/v1/shards", content=b"").status_code == 401
    assert server.storage.objects == {}


def test_a_hub_token_at_the_storage_is_noted():
    with HubServer() as server:
        get_session().get(server.storage.endpoint + "/lfs/0", headers={"Authorization": f"Bearer {READ_TOKEN}"})
        assert server.violations == [("GET", "/lfs/0")]


def test_a_full_storage_refuses_the_upload(server, api, protocol):
    server.quota_bytes = 1000
    if protocol == "xet":  # the size is not known when the client asks for its access token, so it must be full before
        server.storage.objects["0" * 64] = bytes(1000)
    with pytest.raises((HfHubHTTPError, ConnectionError)) as refused:
        add(api, "floats.bin", FLOATS)
    assert ("403 Forbidden" if protocol == "xet" else STORAGE_LIMIT) in str(refused.value)  # hf_xet drops the reason
    assert len(server.repo(REPO).commits()) == 1


# --- failures that tests switch on ---


@pytest.mark.parametrize("step", ["preupload", "batch", "put", "verify"])
@pytest.mark.parametrize("kind", [503, "cut"])
def test_the_client_repeats_a_step_that_fails_twice(server, api, step, kind):
    fault = server.faults.add(step, kind, times=2)
    add(api, "floats.bin", FLOATS)
    assert fault.num_struck == 2 and len(server.requests(step)) == 3
    assert server.repo(REPO).files()["floats.bin"] == FLOATS


@pytest.mark.parametrize("step", ["xorb", "shard"])
@pytest.mark.parametrize("kind", [503, "cut"])
def test_xet_repeats_a_step_that_fails_once(server, api, monkeypatch, step, kind):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    fault = server.faults.add(step, kind, times=1)
    add(api, "floats.bin", FLOATS)
    assert fault.num_struck == 1
    assert server.repo(REPO).files()["floats.bin"] == FLOATS


def test_a_put_that_never_works_leaves_the_repo_untouched(server, api):
    server.faults.add("put", "cut")
    with pytest.raises(RuntimeError, match="Error while uploading 'floats.bin'"):
        add(api, "floats.bin", FLOATS)
    assert len(server.requests("put")) == 6 and server.num_uploaded_bytes == 0
    assert len(server.repo(REPO).commits()) == 1


def test_a_refused_xet_token_leaves_the_repo_untouched(server, api, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    server.faults.add("xet-token", 403, message=STORAGE_LIMIT)
    with pytest.raises((HfHubHTTPError, ConnectionError)):
        add(api, "floats.bin", FLOATS)
    assert len(server.repo(REPO).commits()) == 1


@pytest.mark.parametrize(
    ("step", "call"),
    {
        "create": lambda api: api.create_repo("x"),
        "branch": lambda api: api.create_branch(REPO, branch="x"),
        "tag": lambda api: api.create_tag(REPO, tag="x"),
        "info": lambda api: api.model_info(REPO),
        "commit": lambda api: add(api, "a.txt", b"a"),
    }.items(),
)
@pytest.mark.parametrize("status", [401, 403, 429, 500, 507])
def test_a_step_that_the_client_does_not_repeat_fails_at_once(server, api, step, call, status):
    before = len(server.requests(step))
    server.faults.add(step, status, message="Out of luck")
    with raises_status(status) as failed:
        call(api)
    assert "Out of luck" in str(failed.value) and len(server.requests(step)) == before + 1
    repo = server.repo(REPO)
    assert (len(repo.commits()), list(repo.branches), repo.tags) == (1, ["main"], {})


def test_a_lost_answer_hides_a_commit_that_was_made(server, api):
    server.faults.add("commit", "lost", times=1)
    with pytest.raises(httpx2.HTTPError) as lost:
        add(api, "a.txt", b"a")
    assert not isinstance(lost.value, HfHubHTTPError)
    assert server.repo(REPO).files()["a.txt"] == b"a"
    assert api.list_repo_commits(REPO)[0].title == "Add a.txt"


def test_a_download_cut_half_way_is_repeated(server, api, tmp_path):
    add(api, "floats.bin", FLOATS)
    fault = server.faults.add("download", "cut", times=1)
    downloaded = api.hf_hub_download(REPO, "floats.bin", cache_dir=tmp_path)
    assert open(downloaded, "rb").read() == FLOATS and fault.num_struck == 1


def test_ranges_of_small_and_large_files_are_served(server, api):
    add(api, "floats.bin", FLOATS)
    add(api, "words.txt", b"drop a layer")
    for path, content in {"floats.bin": FLOATS, "words.txt": b"drop a layer"}.items():
        url = f"{server.endpoint}/{REPO}/resolve/main/{path}"
        for span, expected in {"2-5": content[2:6], "5-": content[5:], "-3": content[-3:]}.items():
            answer = get_session().get(url, headers={"Range": f"bytes={span}"})
            assert (answer.status_code, answer.content) == (206, expected)
        assert get_session().get(url, headers={"Range": "bytes=900000-"}).status_code == 416


def test_a_fault_can_choose_its_requests(server, api):
    server.faults.add(lambda method, path: method == "DELETE", 500, skip=1, times=1)
    api.create_repo("a")
    api.create_repo("b")
    api.delete_repo("me/a")
    with raises_status(500):
        api.delete_repo("me/b")
    api.delete_repo("me/b")
    with pytest.raises(ValueError, match="Unknown step 'pit'. Available: auth-check, batch"):
        server.faults.add("pit", 500)
    with pytest.raises(ValueError, match='expected an HTTP status, "cut" or "lost"'):
        server.faults.add("put", "bang")


def test_a_stopped_server_is_down_at_once():
    with HubServer() as server:
        api = HfApi(endpoint=server.endpoint, token=WRITE_TOKEN)
        api.create_repo(REPO)
    with pytest.raises(httpx2.TransportError):
        api.model_info(REPO)


def test_a_defect_of_the_server_fails_the_test():
    with pytest.raises(json.JSONDecodeError), HubServer() as server:
        with pytest.raises(httpx2.HTTPError):
            post(server, "/api/validate-yaml", content=b"no json")

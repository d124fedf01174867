"""WebShop's store: files that are read as a stream, whatever is wrong with them, the search index,
and the cache."""

from __future__ import annotations

import gc
import gzip
import json
import multiprocessing
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leafe.core import Task, UserError
from leafe.envs.webshop import WebShop, _index, _packages, _read, _store
from leafe.envs.webshop._read import Product, product_of, read_items, read_pairs
from leafe.envs.webshop._terms import words_of
from tests.envs.webshop_shop import INSTRUCTIONS, LAMP, SHIRT, goal_task, read, shop_files, solve


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAFE_CACHE", str(tmp_path / "cache"))


# Search


def test_words() -> None:
    assert words_of("The Women's T-Shirt, 3.5 oz & 1,000 pieces for l'eau") == [
        "women",
        "t",
        "shirt",
        "3.5",
        "oz",
        "1,000",
        "pieces",
        "l'eau",
    ]


def test_the_index_is_the_one_that_bm25s_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bm25s = pytest.importorskip("bm25s")
    monkeypatch.setattr(_index, "BLOCK", 50)
    chance = random.Random(0)
    words = [f"w{chance.randrange(10**6)}q" for _ in range(60)]
    texts = [" ".join(chance.choices(words, k=chance.randint(0, 30))) for _ in range(120)]
    builder = _index.IndexBuilder(tmp_path / "index")
    for text in texts:
        builder.add(text)
    builder.finish()
    assert {p.name for p in (tmp_path / "index").iterdir()} >= {
        "data.csc.index.npy",
        "params.index.json",
    }
    assert not list((tmp_path / "index").glob("*.part"))
    index = _index.Index(tmp_path / "index")
    stem = builder.stem
    theirs = bm25s.BM25(k1=_index.K1, b=_index.B, method="lucene")
    theirs.index([[stem(w) for w in words_of(text)] for text in texts], show_progress=False)
    for _ in range(50):
        query = chance.choices(words, k=chance.randint(1, 5))
        wanted = theirs.get_scores([stem(w) for w in query])
        numbers = [index.number(w) for w in query]
        np.testing.assert_allclose(
            index.bm25.get_scores_from_ids([n for n in numbers if n is not None]), wanted, rtol=1e-5
        )
        best = sorted(
            (n for n in range(len(texts)) if wanted[n] > 0), key=lambda n: (-wanted[n], n)
        )
        got = index.search(" ".join(query), 10)
        assert len(got) == min(10, len(best))
        assert [round(float(wanted[n]), 4) for n in got] == [
            round(float(wanted[n]), 4) for n in best[:10]
        ]
    assert index.number("neverseen") is None
    assert index.search("neverseen", 10) == []


def test_equal_scores_are_ordered_by_product(tmp_path: Path) -> None:
    folder = shop_files(tmp_path / "shop", [LAMP | {"asin": f"B{n:09d}"} for n in range(80)], {})
    found = WebShop(products=str(folder)).store.search("lamp")
    assert found == tuple(range(50))


def test_a_product_that_no_word_describes(tmp_path: Path) -> None:
    bare = SHIRT | {"name": "!!", "asin": "B1"}
    env = WebShop(
        products=str(shop_files(tmp_path / "shop", [bare], {"B1": INSTRUCTIONS["B00LAMP001"]}))
    )
    task = env.tasks("train")[0]
    env.reset(task, 0)
    assert "Total results: 0" in env.step("search[lamp]").observation


# Files


def test_both_published_forms_hold_the_same_product(tmp_path: Path) -> None:
    product = read(LAMP)
    document = LAMP | {
        "Title": LAMP["name"],
        "Description": LAMP["full_description"],
        "pricing": [25.0, 1031.5],
        "options": {k: list(v) for k, v in product.options.items()},
        "Attributes": ["long lasting"],
        "Rating": "N.A.",
        "Reviews": [],
    }
    assert product_of({"id": LAMP["asin"], "contents": "x", "product": document}, "there") == (
        product,
        ["long lasting"],
    )
    assert Product.from_bytes(product.to_bytes()) == product
    assert product.options == {"color": ("black | white", "navy  blue"), "size": ("small",)}
    assert product.pricing == (25.0, 1031.5)
    assert read(SHIRT).pricing == (100.0,)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_files_are_read_as_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(_read, "CHUNK", chunk)
    values = [{"a": [1, 2.5, 'é☆\n"', None]}, {}, {"b": {"c": "}]"}}, 12345]
    for indent in (None, 2):
        (tmp_path / "array.json").write_text("\ufeff " + json.dumps(values, indent=indent) + "\n")
        assert [v for v, _ in read_items(tmp_path / "array.json")] == values
        pairs = {f"k{n}": value for n, value in enumerate(values)}
        (tmp_path / "pairs.json").write_text(json.dumps(pairs, indent=indent))
        assert dict(read_pairs(tmp_path / "pairs.json")) == pairs
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(v) for v in values[:3]) + "\n\n")
    assert [v for v, _ in read_items(tmp_path / "lines.jsonl")] == values[:3]
    with gzip.open(tmp_path / "array.json.gz", "wt") as file:
        file.write(json.dumps(values))
    assert [v for v, _ in read_items(tmp_path / "array.json.gz")] == values
    (tmp_path / "empty.json").write_text("{}")
    assert list(read_pairs(tmp_path / "empty.json")) == []


ITEMS = json.dumps([LAMP, SHIRT], indent=1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "holds no product"),
        ("", "holds no product"),
        (json.dumps([LAMP | {"asin": "nan"}]), "holds no product"),
        (ITEMS[:300], "line 9, column 3: the file ends inside a value (half-downloaded?)"),
        (
            ITEMS[: ITEMS.index("}\n,") if "}\n," in ITEMS else ITEMS.rindex("{") - 2],
            "the file ends where",
        ),
        (ITEMS.replace('"query"', "'query'", 1), "line 6, column 3: this is no JSON"),
        (
            "<html>Too many users have viewed this file</html>",
            "line 1, column 1: a product file begins with",
        ),
        ("[1, 2]", "line 1, column 2: a product is an object, not '1'"),
        (
            json.dumps([{k: v for k, v in LAMP.items() if k != "name"}]),
            "line 1, column 2: the product has no text 'name'",
        ),
        (
            json.dumps([LAMP, SHIRT | {"pricing": "$1.2.3"}]),
            "the product B00SHIRT02 has a column of a wrong kind",
        ),
        (
            json.dumps([LAMP | {"customization_options": {"Size": [{"worth": 1}]}}]),
            "the product B00LAMP001 has a column of a wrong kind",
        ),
        ("[" * 100_000, "no JSON"),
        (
            "[" + '{"a": ' * 900 + '"' + "x" * 60_000,
            "no product or instruction that begins here ends within 50000 characters",
        ),
        ('{"B00LAMP001": {"attributes": []}}', "holds no product"),
        ('[{"a": "\udcff"}]', "no UTF-8"),
    ],
)
def test_a_bad_product_file_is_named_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.setattr(_read, "MAX_VALUE", 50_000)
    folder = shop_files(tmp_path / "shop")
    file = folder / "items_shuffle_1000.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        WebShop(products=str(folder))
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    file.write_text(ITEMS)  # and with the file mended all is well
    assert len(WebShop(products=str(folder)).store) == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "items_ins_v2_1000.json",
            b'{"B00LAMP001": {"attributes": ["a"]}',
            "the file ends where ',' or '}' is expected",
        ),
        ("items_ins_v2_1000.json", b"[]", "an instruction file begins with '{'"),
        (
            "items_ins_v2_1000.json",
            b'{"B00LAMP001": [1]}',
            "the entry 'B00LAMP001' is no WebShop instruction",
        ),
        ("items_ins_v2_1000.json", b"{1: 2}", "'\"' expected, not '1'"),
        (
            "items_human_ins.json",
            b'{"B00LAMP001": [{"instruction": "x"}]}',
            "an entry of 'B00LAMP001' is no WebShop instruction written by a person",
        ),
    ],
)
def test_a_bad_instruction_file_is_named(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    folder = shop_files(tmp_path / "shop")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        WebShop(products=str(folder), goals="human" if "human" in name else "synthetic")
    assert says in str(caught.value)
    assert str(folder / name) in str(caught.value)


def test_a_gzip_file_that_was_cut_off(tmp_path: Path) -> None:
    shop_files(tmp_path / "shop")
    raw = gzip.compress(
        json.dumps(
            [
                SHIRT | {"asin": f"B{n}", "name": random.Random(n).randbytes(40).hex()}
                for n in range(500)
            ]
        ).encode()
    )
    (tmp_path / "shop" / "half.json.gz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match=r"half\.json\.gz cannot be read"):
        WebShop(
            products=str(tmp_path / "shop" / "half.json.gz"),
            instructions=str(tmp_path / "shop" / "items_ins_v2_1000.json"),
        )


def test_missing_paths_and_wrong_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shop_files(tmp_path / "shop")
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("LEAFE_DATA", str(tmp_path / "nodata"))
    for options, says in [
        ({"products": str(tmp_path / "x.json")}, "no WebShop product file at"),
        ({"products": str(tmp_path / "none")}, "holds no WebShop product file"),
        ({"catalogue": "files"}, "set LEAFE_DATA to the folder that holds webshop"),
        (
            {"products": str(folder), "instructions": str(tmp_path / "x")},
            "no WebShop instruction file at",
        ),
        (
            {"products": str(folder), "goals": "human", "human": str(tmp_path)},
            "correct the option human",
        ),
        ({"goals": "human"}, "takes no files and no goals by people"),
        ({"goals": "own"}, "no goals 'own': give synthetic or human"),
        ({"catalogue": "real"}, "no catalogue 'real'"),
        ({"size": 0}, "size = 0"),
        ({"limit": True}, "limit = True"),
        ({"horizon": "x"}, "horizon = 'x'"),
    ]:
        with pytest.raises(UserError, match=says):
            WebShop(**options)  # type: ignore[arg-type]
    (folder / "items_human_ins.json").unlink()
    with pytest.raises(
        UserError, match=r"no items_human_ins.json beside .*: give the option human"
    ):
        WebShop(products=str(folder), goals="human")
    (folder / "items_ins_v2_1000.json").unlink()
    with pytest.raises(UserError, match=r"no items_ins_v2_1000\.json or items_ins_v2\.json beside"):
        WebShop(products=str(folder))


def test_instructions_that_name_unknown_products(tmp_path: Path) -> None:
    env = WebShop(products=str(shop_files(tmp_path / "shop")))
    assert env.store.about["unknown_instructions"] == 1
    assert len([t for s in env.splits for t in env.tasks(s)]) == 2
    with pytest.raises(UserError, match="no split 'dev'"):
        env.tasks("dev")
    strangers = {f"B{n}": INSTRUCTIONS["B00LAMP001"] for n in range(7)}
    lost = WebShop(products=str(shop_files(tmp_path / "lost", instructions=strangers)))
    with pytest.raises(
        UserError,
        match=r"No synthetic goal can be made for the 2 products .*7 instructions name products",
    ):
        lost.tasks("train")


def test_duplicates_and_overlong_numbers_are_skipped_and_limit_counts_before(
    tmp_path: Path,
) -> None:
    items = [LAMP, LAMP, LAMP | {"asin": "B0000000001"}, SHIRT, SHIRT | {"asin": "B00SHIRT03"}]
    folder = shop_files(tmp_path / "shop", items)
    env = WebShop(products=str(folder))
    assert (len(env.store), env.store.about["skipped_products"]) == (3, 2)
    assert [
        env.store.row_of(a)
        for a in ("B00LAMP001", "B00SHIRT02", "B00SHIRT03", "B00SHIRT04", "", "B00SHIRT021")
    ] == [0, 1, 2, None, None, None]
    assert len(WebShop(products=str(folder), limit=4).store) == 2


# The cache


def build_folder(env: WebShop) -> Path:
    return env.store.folder


def test_a_build_is_used_again_and_a_bad_one_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shop_files(tmp_path / "shop")
    built: list[Path] = []
    real = _store._build
    monkeypatch.setattr(
        _store, "_build", lambda source, making: (built.append(making), real(source, making))
    )

    def answers() -> list[str]:
        env = WebShop(products=str(folder))
        task = goal_task(env, {"color": "navy blue", "size": "small"})
        return [
            str(env.store.folder),
            env.reset(task, 0),
            *(env.step(a).observation for a in solve(env, task)),
        ]

    first = answers()
    assert answers() == first
    assert len(built) == 1
    whole = Path(first[0])

    def spoil_format() -> None:
        about = json.loads((whole / "about.json").read_text())
        (whole / "about.json").write_text(json.dumps(about | {"format": -1}))

    def spoil_length() -> None:
        file = whole / "index" / "data.csc.index.npy"
        file.write_bytes(file.read_bytes()[:-4])

    def spoil_absence() -> None:
        (whole / "products.bin").unlink()

    def spoil_about() -> None:
        (whole / "about.json").write_text('{"format": ')

    def spoil_killed() -> (
        None
    ):  # what a killed build leaves: no finished folder, and a half-written one beside it
        whole.rename(whole.with_name(whole.name + ".making"))
        (whole.with_name(whole.name + ".making") / "about.json").unlink()

    for number, spoil in enumerate(
        (spoil_format, spoil_length, spoil_absence, spoil_about, spoil_killed)
    ):
        spoil()
        assert answers() == first, spoil.__name__
        assert len(built) == 2 + number
    os.utime(folder / "items_shuffle_1000.json", ns=(1, 1))  # another time: another file
    assert answers()[1:] == first[1:]
    assert len(built) == 7
    assert not list(whole.parent.glob("*.making"))


def _open_in_process(products: str, cache: str, log: str, slowly: bool) -> None:
    real = _store._build

    def build(source: Any, making: Path) -> None:
        with open(log, "a") as file:
            file.write("built\n")
        if slowly:
            making.mkdir(parents=True)
            (making / "half").write_text("x")
            time.sleep(60)
        real(source, making)

    _store._build = build  # type: ignore[assignment]
    env = WebShop(products=products, cache=cache)
    assert env.store.search("lamp") == (0,)


def test_many_workers_build_once_and_a_killed_build_is_no_build(tmp_path: Path) -> None:
    folder, cache, log = shop_files(tmp_path / "shop"), tmp_path / "shared", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    victim = context.Process(
        target=_open_in_process, args=(str(folder), str(cache), str(log), True)
    )
    victim.start()
    while not list(cache.glob("*.making/half")):
        time.sleep(0.02)
        assert victim.is_alive()
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    workers = [
        context.Process(target=_open_in_process, args=(str(folder), str(cache), str(log), False))
        for _ in range(5)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 5
    assert log.read_text() == "built\n" * 2
    assert [p.suffix for p in cache.iterdir() if p.is_dir()] == [""]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError,
        match=r"The WebShop index cannot be written to .*set the option cache or LEAFE_CACHE",
    ):
        WebShop(size=5, cache=str(tmp_path / "file" / "cache"))


def test_envs_of_one_process_share_a_store(tmp_path: Path) -> None:
    one, other = WebShop(size=20), WebShop(size=20)
    assert one.store is other.store
    task = one.tasks("train", 1)[0]
    one.reset(task, 0)
    one.step("search[" + task.payload["title"] + "]")
    other.reset(one.tasks("train", 2)[1], 0)
    other.restore(one.snapshot())
    click = f"click[{task.payload['asin'].lower()}]"
    assert other.step(click) == one.step(click)
    one.close()
    other.close()
    del one, other
    gc.collect()
    assert not _store._stores  # with the last environment its files are let go


def test_envs_in_many_threads_see_what_one_sees(tmp_path: Path) -> None:
    tasks = WebShop(size=80).tasks("train", 24)

    def play(task: Task) -> list[str]:
        env = WebShop(size=80)
        return [
            env.reset(task, 0),
            *(
                env.step(action).observation
                for action in ("search[lamp dress shampoo with light]", *solve(env, task))
            ),
        ]

    alone = [play(task) for task in tasks]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(play, tasks * 4)) == alone * 4


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(_packages, "import_module", absent)
    with pytest.raises(
        UserError, match=r"needs the package 'PyStemmer': run pip install 'leafe\[webshop\]'"
    ):
        WebShop(size=5)

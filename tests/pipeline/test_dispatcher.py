"""Tasks dealt to actors that come and go: the trees are those of one machine, every finished
episode stands in the journal once, whoever dies when."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Episode, ForeignFailure, Task, Tree, UserError
from leafe.pipeline import run_recipe
from leafe.pipeline._actor import StageActor, order_for
from leafe.pipeline._dispatcher import TRIES, Actor, Lost, TaskDispatcher
from leafe.pipeline._plan import find
from leafe.pipeline._stages import sampling_of, source_of
from leafe.prompts import load_prompt_set
from leafe.recipes import Recipe, load_recipe
from leafe.runs import Journal, load_trees, read_journal, read_tasks
from tests.pipeline.test_run import trees_of

SMALL = str(Path(__file__).with_name("small.toml"))
OVERRIDES = (
    "policy.kind=tests.gates_policy:Fickle",
    "env.options.setting=hard",
    "arms={}",
    "evaluate.compare=[]",
    "tasks.train=12",
    "tasks.test=6",
    "explore.branches_per_reflection=2",
    "explore.limits.policy_calls=20",
    "explore.concurrency=4",
)


def fickle(*more: str) -> Recipe:
    return load_recipe(SMALL, (*OVERRIDES, *more))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One machine's run."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    run_recipe(fickle(), path)
    return path


class Here:
    """An actor in this process. `dies` is asked after each of its answers, and decides whether this
    one is lost on the way and its maker with it."""

    def __init__(self, actor: StageActor, dies: Callable[[], bool]) -> None:
        self.actor, self.dies, self.dismissed = actor, dies, False

    async def start(self) -> None:
        assert json.loads(await self.actor.start())["error"] is None
        if self.dies():
            raise Lost("it did not come up")

    async def exchange(self, orders: str) -> str:
        answer = await self.actor.exchange(orders)
        if self.dies():
            raise Lost("the node went up in smoke")
        return answer

    async def dismiss(self) -> None:
        assert not self.dismissed
        self.dismissed = True
        await self.actor.close()


class Memory:
    """A journal that is kept in memory."""

    def __init__(self) -> None:
        self.lines: list[list[Episode]] = []

    def append(self, episodes: Any) -> None:
        self.lines.append(list(episodes))

    @property
    def episodes(self) -> list[Episode]:
        return [e for line in self.lines for e in line]


def deal(
    recipe: Recipe,
    folder: Path,
    stage_name: str,
    journal: Any,
    *,
    dies: Callable[[], bool] = lambda: False,
    known: Mapping[str, Tree] | None = None,
    **more: Any,
) -> TaskDispatcher:
    """Deal the stage's tasks of the whole run to actors in this process."""
    stage = find(recipe, stage_name)
    tasks = read_tasks(folder / stage_name)
    order = order_for(
        recipe,
        folder,
        stage,
        load_prompt_set(recipe.prompts),
        3,
        source_of(folder, stage),
        sampling_of(recipe, folder, stage),
    )
    hired: list[Here] = []

    async def hire() -> Actor:
        hired.append(Here(StageActor(order), dies))
        return hired[-1]

    async def main() -> TaskDispatcher:
        dealer = TaskDispatcher(
            tasks,
            known or {},
            hire,
            journal,
            **({"actors": 3, "slots": 3, "whole": stage.kind != "explore"} | more),
        )
        await dealer.run()
        return dealer

    try:
        return asyncio.run(main())
    finally:
        assert all(actor.dismissed for actor in hired)


def as_trees(folder: Path, stage: str, episodes: list[Episode], tmp_path: Path) -> list[object]:
    """As `trees_of` reads them."""
    (tmp_path / stage).mkdir(parents=True)
    (tmp_path / stage / "tasks.jsonl").write_bytes((folder / stage / "tasks.jsonl").read_bytes())
    with Journal(tmp_path / stage, fsync=False) as journal:
        journal.append(episodes)
    return trees_of(tmp_path, stage)


@pytest.mark.parametrize("stage", ["explore/tree", "evaluate/base"])
def test_dealt_it_is_what_one_machine_finds(whole: Path, tmp_path: Path, stage: str) -> None:
    memory = Memory()
    dealer = deal(fickle(), whole, stage, memory)
    assert as_trees(whole, stage, memory.episodes, tmp_path) == trees_of(whole, stage)
    assert (dealer.done, dealer.lost, dealer.given_again, dealer.at_work) == (
        len(read_tasks(whole / stage)),
        0,
        0,
        0,
    )
    calls = sum(fact["policy_failures"]["asked"] for fact in dealer.facts)
    if stage == "explore/tree":
        assert calls == sum(len(e.turns) for e in memory.episodes), "no call was made twice"


@pytest.mark.parametrize("stage", ["explore/tree", "evaluate/base"])
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.02, 0.1, 0.2]))
def test_actors_that_die_at_any_time_change_nothing(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, stage: str, seed: int, share: float
) -> None:
    chance = random.Random(seed)
    memory = Memory()
    left = TRIES - 1  # of more, all could meet one task
    deaths = 0

    def dies() -> bool:
        nonlocal deaths
        if deaths < left and chance.random() < share:
            deaths += 1
            return True
        return False

    dealer = deal(fickle(), whole, stage, memory, dies=dies)
    twice = [
        key
        for key, times in Counter((e.task_id, e.index) for e in memory.episodes).items()
        if times > 1
    ]
    assert not twice
    assert as_trees(whole, stage, memory.episodes, tmp_path_factory.mktemp("dealt")) == trees_of(
        whole, stage
    )
    assert dealer.lost == deaths


@settings(max_examples=8)
@given(lines=st.integers(0, 40))
def test_it_goes_on_from_any_point_of_the_journal(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, lines: int
) -> None:
    """What stands in the journal is handed along: the rest is found, and nothing of it again."""
    before = [e for line in read_journal(whole / "explore/tree") for e in line]
    kept = before[: min(lines, len(before))]
    trees = {task.id: Tree(task) for task in read_tasks(whole / "explore/tree")}
    for episode in kept:
        trees[episode.task_id].add(episode)
    memory = Memory()
    deal(fickle(), whole, "explore/tree", memory, known=trees)
    assert as_trees(
        whole, "explore/tree", kept + memory.episodes, tmp_path_factory.mktemp("dealt")
    ) == trees_of(whole, "explore/tree")


def started(recipe: Recipe, folder: Path, stage_name: str, source: str = "base") -> Any:
    """What an actor says when it starts."""

    async def main() -> Any:
        actor = StageActor(
            order_for(
                recipe, folder, find(recipe, stage_name), load_prompt_set(recipe.prompts), 1, source
            )
        )
        try:
            return json.loads(await actor.start())
        finally:
            await actor.close()

    return asyncio.run(main())


def test_an_actor_needs_no_file_of_the_drivers_to_explore(tmp_path: Path) -> None:
    words = tmp_path / "own.toml"
    words.write_text('name = "own"\naction = "plain"\n')
    recipe = fickle(f"prompts={words}")
    order = order_for(
        recipe,
        tmp_path / "absent",
        find(recipe, "explore/tree"),
        load_prompt_set(recipe.prompts),
        1,
    )
    words.unlink()

    async def main() -> str:
        actor = StageActor(order)
        assert json.loads(await actor.start())["error"] is None
        await actor.close()
        return actor.prompts.set.name

    assert asyncio.run(main()) == "own"
    assert not (tmp_path / "absent").exists()


def test_weights_that_a_node_does_not_see(tmp_path: Path) -> None:
    arm = fickle("arms.rft.preset=rft", "arms.rft.explored=tree")
    error = started(arm, tmp_path, "evaluate/rft", str(tmp_path / "distill/rft/checkpoint"))[
        "error"
    ]
    assert error["kind"] == "user"
    assert (
        f"The weights of rft lie in {tmp_path / 'distill/rft/checkpoint'}, which the node"
        in error["message"]
    )
    assert 'share, or set engine = "local".' in error["message"]
    (tmp_path / "model").mkdir()
    folder = fickle(f"policy.model={tmp_path / 'model'}", "policy.kind=hf")
    order = order_for(folder, tmp_path, find(folder, "explore/tree"), load_prompt_set("gates"), 1)
    (tmp_path / "model").rmdir()

    async def main() -> Any:
        return json.loads(await StageActor(order).start())["error"]["message"]

    assert f"The model {tmp_path / 'model'} is a folder that the node" in asyncio.run(main())


def test_nodes_with_another_env_or_another_leafe_are_refused() -> None:
    from leafe import __version__
    from leafe.pipeline._ray import _same_everywhere

    _same_everywhere({"at": "n7", "leafe": __version__, "env": {"data": "1"}}, {"data": "1"})
    with pytest.raises(
        UserError,
        match=r"The environment on the node n7 is not the one here: its data is '2' and not '1'",
    ):
        _same_everywhere({"at": "n7", "leafe": __version__, "env": {"data": "2"}}, {"data": "1"})
    with pytest.raises(UserError, match=r"its data is None and not '1'"):
        _same_everywhere({"at": "n7", "leafe": __version__, "env": {}}, {"data": "1"})
    with pytest.raises(UserError, match=r"The node n7 has leafe 0.0 and this machine"):
        _same_everywhere({"at": "n7", "leafe": "0.0", "env": {}}, {})


# what follows needs no stage: actors by script


def plain(number: int) -> list[Task]:
    return [Task(f"t{i}", "none", "train", "") for i in range(number)]


def said(**more: Any) -> dict[str, Any]:
    return {
        "episodes": [],
        "done": [],
        "failed": {},
        "unheard": {},
        "error": None,
        "facts": {},
    } | more


class Scripted:
    """Does each task at once, unless `play` says otherwise: it gets the ids that the actor holds,
    and returns an answer or raises `Lost`."""

    def __init__(self, play: Callable[[set[str]], dict[str, Any]]) -> None:
        self.play = play
        self.holds: set[str] = set()

    async def start(self) -> None:
        await asyncio.sleep(0)

    async def exchange(self, orders: str) -> str:
        self.holds |= {order["task"]["id"] for order in json.loads(orders)}
        await asyncio.sleep(0)
        answer = self.play(set(self.holds))
        self.holds -= {*answer["done"], *answer["failed"], *answer["unheard"]}
        return json.dumps(answer)

    async def dismiss(self) -> None:
        await asyncio.sleep(0)


def scripted(
    tasks: list[Task],
    play: Callable[[set[str]], dict[str, Any]],
    *,
    actors: int = 2,
    slots: int = 4,
    **more: Any,
) -> TaskDispatcher:
    async def main() -> TaskDispatcher:
        async def hire() -> Actor:
            await asyncio.sleep(0)
            return Scripted(play)

        dealer = TaskDispatcher(
            tasks,
            {},
            more.pop("hire", hire),
            more.pop("journal", Memory()),
            actors=actors,
            slots=slots,
            **more,
        )
        held.append(dealer)
        await dealer.run()
        return dealer

    return asyncio.run(main())


held: list[TaskDispatcher] = []


def test_a_slow_task_holds_up_nobody() -> None:
    done: list[str] = []

    def play(holds: set[str]) -> dict[str, Any]:
        quick = sorted(holds - {"t0"})
        if not quick:
            return said(done=["t0"] if len(done) == 19 else [])
        done.extend(quick)
        return said(done=quick)

    assert scripted(plain(20), play).done == 20
    assert len(done) == 19


def test_a_deadly_task_is_given_up_and_no_other() -> None:
    """Whoever holds t3 dies; those that shared its actors are done in the end."""

    def play(holds: set[str]) -> dict[str, Any]:
        if "t3" in holds:
            raise Lost("out of memory")
        return said(done=[min(holds)])

    with pytest.raises(
        ForeignFailure,
        match=(
            r"1 tasks were given up after 5 actors each \(t3\), the last with: out of memory "
            r"All others are done"
        ),
    ):
        scripted(plain(12), play)
    assert held[-1].done == 11
    assert held[-1].lost == TRIES


def test_a_task_that_fails_is_tried_on_other_actors() -> None:
    tries: Counter[str] = Counter()

    def play(holds: set[str]) -> dict[str, Any]:
        tries.update(holds)
        return said(
            done=sorted(h for h in holds if tries[h] > 2),
            failed={h: "no such disk" for h in holds if tries[h] <= 2},
        )

    assert scripted(plain(5), play).done == 5


def test_a_cluster_on_which_every_actor_dies_ends_the_stage() -> None:
    async def hire() -> Actor:
        raise Lost("no leafe on this node")

    with pytest.raises(
        ForeignFailure,
        match=r"1\d actors were lost one after another .* the last with: no leafe on this node",
    ):
        scripted(plain(3), lambda holds: said(), hire=hire, actors=4)


def test_a_cluster_without_room_ends_the_stage() -> None:
    async def hire() -> Actor:
        await asyncio.sleep(100)
        raise AssertionError

    with pytest.raises(ForeignFailure, match="full"):
        scripted(plain(3), lambda holds: said(), hire=hire, wait=0.2, short=lambda: "It is full.")


def test_an_actor_that_takes_long_to_start_is_waited_for() -> None:
    class Slow(Scripted):
        async def start(self) -> None:
            await asyncio.sleep(0.8)

    async def hire() -> Actor:
        return Slow(lambda holds: said(done=sorted(holds)))

    assert scripted(plain(3), lambda holds: said(), hire=hire, wait=0.1).done == 3


def test_what_an_actor_says_is_wrong_ends_the_stage_and_what_came_with_it_is_kept() -> None:
    memory = Memory()
    episode = Episode("t0", 0, "budget", ()).to_json()  # type: ignore[arg-type]

    def play(holds: set[str]) -> dict[str, Any]:
        return said(
            episodes=[episode] if "t0" in holds else [],
            error={"kind": "user", "message": "no such option"},
        )

    with pytest.raises(UserError, match="no such option"):
        scripted(plain(3), play, journal=memory, actors=1)
    assert [e.task_id for e in memory.episodes] == ["t0"]
    with pytest.raises(RuntimeError, match="Traceback"):
        scripted(plain(3), lambda holds: said(error={"kind": "bug", "message": "Traceback"}))


def test_a_journal_that_cannot_be_written_ends_the_stage() -> None:
    class Full(Memory):
        def append(self, episodes: Any) -> None:
            raise ForeignFailure("disk full")

    episode = Episode("t0", 0, "budget", ()).to_json()  # type: ignore[arg-type]
    with pytest.raises(ForeignFailure, match="disk full"):
        scripted(plain(1), lambda holds: said(episodes=[episode], done=["t0"]), journal=Full())


def test_an_episode_of_a_task_that_the_actor_does_not_hold_is_refused() -> None:
    memory = Memory()
    episode = Episode("t9", 0, "budget", ()).to_json()  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="which it does not hold"):
        scripted(plain(1), lambda holds: said(episodes=[episode]), journal=memory)
    assert not memory.lines


def test_the_last_tasks_are_given_again_to_those_who_wait() -> None:
    """One actor idles while the other holds the only task, and dies."""
    deaths = []

    def play(holds: set[str]) -> dict[str, Any]:
        if not deaths:
            deaths.append(1)
            raise Lost("gone")
        return said(done=sorted(holds))

    dealer = scripted(plain(2), play, slots=2)
    assert (dealer.done, dealer.lost) == (2, 1)


def test_where_all_samples_of_all_tasks_are_lost_the_evaluation_ends() -> None:
    with pytest.raises(
        ForeignFailure, match=r"1\d tasks in a row were lost, the last with: nobody is at home"
    ):
        scripted(
            plain(40),
            lambda holds: said(all_samples_lost=dict.fromkeys(sorted(holds), "nobody is at home")),
        )
    some = scripted(
        plain(6),
        lambda holds: said(
            all_samples_lost={h: "so" for h in holds if h == "t2"}, done=sorted(holds - {"t2"})
        ),
    )
    assert some.done == 6
    assert set(some.all_samples_lost) == {"t2"}


def test_run_limits_cannot_be_shared() -> None:
    with pytest.raises(
        UserError,
        match=r"explore.run_limits bound a whole stage, which actors cannot share exactly",
    ):
        fickle("engine=ray", "explore.run_limits.policy_calls=100")


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UserError, match=r"The package ray is not installed: pip install 'leafe\[ray\]'"
    ):
        run_recipe(fickle("engine=ray"), tmp_path / "run", only="explore")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (
            "127.0.0.1:1",
            (
                r"No Ray cluster answers at 127.0.0.1:1 \(.*refused\): check ray.address, or "
                r"start its head"
            ),
        ),
        ("no.such.host.invalid:6379", "No Ray cluster answers at no.such.host.invalid:6379"),
        ("127.0.0.1:99999", "No Ray cluster answers at 127.0.0.1:99999"),
        ("somewhere", "ray.address = 'somewhere' is no cluster's head: write HOST:PORT"),
        ("ray://127.0.0.1:10001", "is no cluster's head: write HOST:PORT"),
    ],
)
def test_an_address_where_no_cluster_is(tmp_path: Path, address: str, says: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=says):
        run_recipe(
            fickle("engine=ray", f"ray.address='{address}'"), tmp_path / "run", only="explore"
        )


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"-ERR unknown command\r\n", b""],
)
def test_an_address_where_something_else_answers(tmp_path: Path, answer: bytes) -> None:
    """The dashboard's port instead of the head's, say."""
    pytest.importorskip("ray")
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listening, listening.accept()[0] as wire:
            wire.recv(100)
            wire.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(
        UserError, match=f"What answers at {address} is no head of a Ray cluster: give the port"
    ):
        run_recipe(
            fickle("engine=ray", f"ray.address='{address}'"), tmp_path / "run", only="explore"
        )


def test_the_engine_is_no_part_of_the_experiment(whole: Path) -> None:
    """A run that one engine began is gone on with by the other: here nothing is left to do."""
    run_recipe(fickle("engine=ray", "ray.workers=7", "ray.address='10.0.0.1:6379'"), whole)
    assert load_trees(whole / "explore/tree")

"""Tasks dealt to actors that come and go: the trees are those of one machine, every finished
episode stands in the journal once, whoever dies when."""

from __future__ import annotations

import asyncio
import queue
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Episode, ForeignFailure, Stop, Task, Tree, UserError
from leafe.pipeline import run_recipe
from leafe.pipeline._acting import Source, sampling_of, source_of
from leafe.pipeline._actor import StageActor, actor_order
from leafe.pipeline._dispatcher import MAX_TRIES, End, Reply, TaskDispatcher, WorkerLost
from leafe.pipeline._plan import find
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


class Stream:
    """A call to a worker in this process: what `read` returns, as a worker replies it."""

    def __init__(self, read: Callable[[], Reply | None]) -> None:
        self.read = read
        self.reply: Reply | None = None

    def there(self) -> bool:
        self.reply = self.reply or self.read()
        return self.reply is not None

    def next(self) -> Reply:
        assert self.reply is not None
        reply, self.reply = self.reply, None
        return reply


def poll(calls: Sequence[Stream], seconds: float) -> list[Stream]:
    """The calls that have a reply; a failing one has."""
    deadline = time.monotonic() + min(seconds, 0.05)
    while True:
        found = [call for call in calls if call.there()]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.001)


class Failing(Stream):
    """It has been lost, or has failed."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def there(self) -> bool:
        return True

    def next(self) -> Reply:
        raise self.error


class Here:
    """A worker in this process, on an event loop of its own. `dies` is asked after each of its
    replies, and decides whether this one is lost on the way and the worker with it."""

    def __init__(self, order: dict[str, Any], dies: Callable[[], bool], stack: ExitStack) -> None:
        self.order, self.dies, self.dead = order, dies, True
        self.loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self.loop.run_forever)
        thread.start()
        stack.callback(self.loop.close)
        stack.callback(thread.join)
        stack.callback(self.loop.call_soon_threadsafe, self.loop.stop)
        stack.callback(self.close)

    def close(self) -> None:
        if not self.dead:
            self.dead = True
            asyncio.run_coroutine_threadsafe(self.actor.close(), self.loop).result()

    def place(self) -> Stream:
        self.actor, self.dead = StageActor(self.order), False
        return Stream(Reply)

    def call(self, work: Any) -> Stream:
        replies: queue.SimpleQueue[Any] = queue.SimpleQueue()

        async def main() -> None:
            try:
                async for reply in work:
                    replies.put(reply)
            except BaseException as error:
                replies.put(error)

        asyncio.run_coroutine_threadsafe(main(), self.loop)
        life = self.actor
        worker = self

        class Answered(Stream):
            lost: str | None = None

            def there(self) -> bool:
                if worker.dead or worker.actor is not life:
                    self.lost = "it is gone"
                    return True
                return super().there()

            def next(self) -> Reply:
                if self.lost is None and worker.dies():
                    worker.close()
                    self.lost = "the node went up in smoke"
                if self.lost is not None:
                    raise WorkerLost(self.lost)
                reply: Any = super().next()
                if isinstance(reply, BaseException):
                    raise reply
                return reply

        return Answered(lambda: None if replies.empty() else replies.get())

    def start(self) -> Stream:
        async def started() -> Any:
            await self.actor.start()
            yield Reply()

        return self.call(started())

    def run(self, task: Task, episodes: Sequence[Episode]) -> Stream:
        return self.call(self.actor.run(task, episodes))


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
    order = actor_order(
        recipe,
        folder,
        stage,
        load_prompt_set(recipe.prompts),
        3,
        source_of(folder, stage),
        sampling_of(recipe, folder, stage),
    )
    with ExitStack() as stack:
        workers = [Here(order, dies, stack) for _ in range(3)]
        dispatcher = TaskDispatcher(
            tasks,
            known or {},
            workers,
            poll,
            journal,
            **({"slots": 3, "whole": stage.kind != "explore"} | more),
        )
        dispatcher.run()
    return dispatcher


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
    dispatcher = deal(fickle(), whole, stage, memory)
    assert as_trees(whole, stage, memory.episodes, tmp_path) == trees_of(whole, stage)
    assert (dispatcher.done, dispatcher.lost, dispatcher.given_again) == (
        len(read_tasks(whole / stage)),
        0,
        0,
    )
    calls = sum(stats["policy_failures"]["asked"] for stats in dispatcher.stats)
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
    left = MAX_TRIES - 1  # of more, all could meet one task
    deaths = 0

    def dies() -> bool:
        nonlocal deaths
        if deaths < left and chance.random() < share:
            deaths += 1
            return True
        return False

    dispatcher = deal(fickle(), whole, stage, memory, dies=dies)
    twice = [
        key
        for key, times in Counter((e.task_id, e.index) for e in memory.episodes).items()
        if times > 1
    ]
    assert not twice
    assert as_trees(whole, stage, memory.episodes, tmp_path_factory.mktemp("dealt")) == trees_of(
        whole, stage
    )
    assert dispatcher.lost == deaths


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


def started(order: dict[str, Any]) -> StageActor:
    """An actor that was started, and closed again."""

    async def main() -> StageActor:
        actor = StageActor(order)
        try:
            await actor.start()
        finally:
            await actor.close()
        return actor

    return asyncio.run(main())


def test_an_actor_needs_no_file_of_the_drivers_to_explore(tmp_path: Path) -> None:
    words = tmp_path / "own.toml"
    words.write_text('name = "own"\naction = "plain"\n')
    recipe = fickle(f"prompts={words}")
    prompt_set = load_prompt_set(recipe.prompts)
    stage = find(recipe, "explore/tree")
    order = actor_order(recipe, tmp_path / "absent", stage, prompt_set, 1)
    words.unlink()
    assert started(order).prompts.set.name == "own"
    assert not (tmp_path / "absent").exists()


def test_weights_that_a_node_does_not_see(tmp_path: Path) -> None:
    arm = fickle("arms.rft.preset=rft", "arms.rft.explored=tree")
    weights = tmp_path / "distill/rft/checkpoint"
    stage = find(arm, "evaluate/rft")
    source = Source(stage.policy, weights)
    with pytest.raises(UserError) as caught:
        started(actor_order(arm, tmp_path, stage, load_prompt_set(arm.prompts), 1, source))
    assert f"The weights of rft lie in {weights}, which the node" in str(caught.value)
    assert 'share, or set engine = "local".' in str(caught.value)
    (tmp_path / "model").mkdir()
    folder = fickle(f"policy.model={tmp_path / 'model'}", "policy.kind=hf")
    order = actor_order(folder, tmp_path, find(folder, "explore/tree"), load_prompt_set("gates"), 1)
    (tmp_path / "model").rmdir()
    with pytest.raises(UserError, match=f"The model {tmp_path / 'model'} is a folder that the"):
        started(order)


def test_nodes_with_another_env_or_another_leafe_are_refused() -> None:
    from leafe import __version__
    from leafe.pipeline._ray import _check_node

    _check_node({"node": "n7", "leafe": __version__, "env": {"data": "1"}}, {"data": "1"})
    with pytest.raises(
        UserError,
        match=r"The environment on the node n7 is not the one here: its data is '2' and not '1'",
    ):
        _check_node({"node": "n7", "leafe": __version__, "env": {"data": "2"}}, {"data": "1"})
    with pytest.raises(UserError, match=r"its data is None and not '1'"):
        _check_node({"node": "n7", "leafe": __version__, "env": {}}, {"data": "1"})
    with pytest.raises(UserError, match=r"The node n7 has leafe 0.0 and this machine"):
        _check_node({"node": "n7", "leafe": "0.0", "env": {}}, {})


# what follows needs no stage: workers by script


def plain(number: int) -> list[Task]:
    return [Task(f"t{i}", "none", "train", "") for i in range(number)]


Play = Callable[[str, set[str]], Reply | None]
"""The reply to a task, given what its worker holds; None: not yet. May raise."""


class Scripted:
    """Does each task at once, unless `play` says otherwise."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.holds: set[str] = set()

    def place(self) -> Stream:
        self.holds.clear()
        return Stream(Reply)

    def start(self) -> Stream:
        return Stream(Reply)

    def run(self, task: Task, episodes: Sequence[Episode]) -> Stream:
        self.holds.add(task.id)
        worker = self

        class Played(Stream):
            failed: Exception | None = None

            def there(self) -> bool:
                try:
                    return super().there()
                except Exception as error:
                    self.failed = error
                    return True

            def next(self) -> Reply:
                if self.failed is not None:
                    raise self.failed
                reply = super().next()
                if reply.end is not None:
                    worker.holds.discard(task.id)
                return reply

        return Played(lambda: worker.play(task.id, set(worker.holds)))


DONE = Reply(end=End.done)


def scripted(
    tasks: list[Task],
    play: Play = lambda task, holds: DONE,
    *,
    workers: int = 2,
    slots: int = 4,
    kind: type[Scripted] = Scripted,
    journal: Any = None,
    **more: Any,
) -> TaskDispatcher:
    dispatcher = TaskDispatcher(
        tasks,
        {},
        [kind(play) for _ in range(workers)],
        poll,
        journal or Memory(),
        slots=slots,
        **more,
    )
    held.append(dispatcher)
    dispatcher.run()
    return dispatcher


held: list[TaskDispatcher] = []


def test_a_slow_task_holds_up_nobody() -> None:
    done: set[str] = set()

    def play(task: str, holds: set[str]) -> Reply | None:
        if task == "t0":
            return DONE if len(done) == 19 else None
        done.add(task)
        return DONE

    assert scripted(plain(20), play).done == 20
    assert len(done) == 19


def test_a_deadly_task_is_given_up_and_no_other() -> None:
    """Whoever holds t3 dies; those that shared its workers are done in the end."""

    def play(task: str, holds: set[str]) -> Reply:
        if "t3" in holds:
            raise WorkerLost("out of memory")
        return DONE

    with pytest.raises(
        ForeignFailure,
        match=(
            r"1 tasks were given up after 5 workers each \(t3\), the last with: out of memory "
            r"All others are done"
        ),
    ):
        scripted(plain(12), play)
    assert held[-1].done == 11
    assert held[-1].lost == MAX_TRIES


def test_a_task_that_fails_is_tried_on_other_workers() -> None:
    tries: Counter[str] = Counter()

    def play(task: str, holds: set[str]) -> Reply:
        tries[task] += 1
        return DONE if tries[task] > 2 else Reply(end=End.failed, reason="no such disk")

    assert scripted(plain(5), play).done == 5


def test_a_cluster_on_which_every_worker_dies_ends_the_stage() -> None:
    class Dead(Scripted):
        def place(self) -> Stream:
            return Failing(WorkerLost("no leafe on this node"))

    with pytest.raises(
        ForeignFailure,
        match=r"1\d workers were lost one after another .* the last with: no leafe on this node",
    ):
        scripted(plain(3), kind=Dead, workers=4)


def test_a_cluster_without_room_ends_the_stage() -> None:
    class Outside(Scripted):
        def place(self) -> Stream:
            return Stream(lambda: None)

    with pytest.raises(ForeignFailure, match="full"):
        scripted(plain(3), kind=Outside, patience=0.2, no_worker=lambda: "It is full.")


def test_a_worker_that_takes_long_to_start_is_waited_for() -> None:
    class Slow(Scripted):
        def start(self) -> Stream:
            ready = time.monotonic() + 0.8
            return Stream(lambda: Reply() if time.monotonic() > ready else None)

    assert scripted(plain(3), kind=Slow, patience=0.1).done == 3


def test_what_a_worker_says_is_wrong_ends_the_stage_and_what_came_with_it_is_kept() -> None:
    episode = Episode("t0", 0, Stop.budget, ())

    def failing(error: Exception) -> Play:
        sent = False

        def play(task: str, holds: set[str]) -> Reply:
            nonlocal sent
            if task == "t0" and not sent:
                sent = True
                return Reply((episode,))
            raise error

        return play

    memory = Memory()
    with pytest.raises(UserError, match="no such option"):
        scripted(plain(3), failing(UserError("no such option")), journal=memory, workers=1)
    assert [e.task_id for e in memory.episodes] == ["t0"]
    with pytest.raises(RuntimeError, match="Traceback"):
        scripted(plain(3), failing(RuntimeError("Traceback")))


def test_a_journal_that_cannot_be_written_ends_the_stage() -> None:
    class Full(Memory):
        def append(self, episodes: Any) -> None:
            raise ForeignFailure("disk full")

    episode = Episode("t0", 0, Stop.budget, ())
    with pytest.raises(ForeignFailure, match="disk full"):
        scripted(plain(1), lambda task, holds: Reply((episode,), End.done), journal=Full())


def test_an_episode_of_a_task_that_the_worker_does_not_hold_is_refused() -> None:
    memory = Memory()
    episode = Episode("t9", 0, Stop.budget, ())
    with pytest.raises(RuntimeError, match="which it does not hold"):
        scripted(plain(1), lambda task, holds: Reply((episode,)), journal=memory)
    assert not memory.lines


def test_the_last_tasks_are_given_again_to_those_who_wait() -> None:
    """One worker idles while the other holds the only tasks, and dies."""
    deaths = []

    def play(task: str, holds: set[str]) -> Reply:
        if not deaths:
            deaths.append(1)
            raise WorkerLost("gone")
        return DONE

    dispatcher = scripted(plain(2), play, slots=2)
    assert (dispatcher.done, dispatcher.lost) == (2, 1)


def test_the_newest_counts_of_a_worker_are_kept() -> None:
    """Replies of two runs may be read in another order than they were sent."""
    sent = {
        "t0": Reply(end=End.done, stats={"n": 2}, number=2),
        "t1": Reply(end=End.done, stats={"n": 1}, number=1),
    }
    assert scripted(plain(2), lambda task, holds: sent[task], workers=1).stats == [{"n": 2}]


def test_where_all_samples_of_all_tasks_are_lost_the_evaluation_ends() -> None:
    lost = Reply(end=End.all_samples_lost, reason="nobody is at home")
    with pytest.raises(
        ForeignFailure, match=r"1\d tasks in a row were lost, the last with: nobody is at home"
    ):
        scripted(plain(40), lambda task, holds: lost)
    some = scripted(plain(6), lambda task, holds: lost if task == "t2" else DONE)
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

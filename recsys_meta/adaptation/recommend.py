"""From histories to top-k lists: users streamed in batches, items in tiles, nobody left without an answer.

Letters: T users of a batch, S support examples, I items, C candidates, k wanted, P columns of a user vector.

Whom the learner cannot answer gets the next best thing, and the reason: adapted -> prior -> popularity.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import starmap
from typing import NamedTuple

import torch
from torch import Tensor

from recsys_meta.algorithms.base import Learner, TaskState
from recsys_meta.episodes import collate
from recsys_meta.native import kernels
from recsys_meta.native.topk import Running, TieRanks
from recsys_meta.tables import ADAPTED, POPULARITY, PRIOR, SOURCES
from recsys_meta.tensors import Catalogue, Examples, Features, Histories, ItemCodes, Ragged

log = logging.getLogger(__name__)

# Codes of Recommended.reason; a later one outweighs an earlier one.
REASONS: Sequence[str | None] = (
    None,
    "history cut to the newest",
    "no history",
    "inner loop not finite",
    "prior not finite",
    "no candidate left",
)
_WHOLE_HISTORY, _CUT, _NO_HISTORY, _INNER_LOOP, _PRIOR_FAILED, _NO_CANDIDATE = range(len(REASONS))
_FROM_ADAPTED, _FROM_PRIOR, _FROM_POPULARITY = (SOURCES.index(name) for name in (ADAPTED, PRIOR, POPULARITY))


# Users whose lists are handed on together at least: what becomes of them (tables, files) takes time by the piece.
_USERS_TOGETHER = 4096


# Scores that a batch makes of a tile where the batch is not given: they stay in the caches.
_SCORES_TOGETHER = 2**20

# Users adapted at a time on a CPU. Of an MLP's inner loop, 64 take two thirds of the time per user that 256 take.
_ADAPTED_TOGETHER = 64


class Recommended(NamedTuple):
    """The lists of some users, on the CPU."""

    rows: Tensor  # [T] int64: user rows
    items: Tensor  # [T, k] int64: rows of the catalogue, best first; -1 where there is no further candidate
    scores: Tensor  # [T, k] float32; minus infinity where there is no item
    source: Tensor  # [T] int8: index into tables.SOURCES
    n_support: Tensor  # [T] int64: examples of the history in use
    loss_before: Tensor  # [T] float32: of the support set under the prior; NaN where nothing was adapted
    loss_after: (
        Tensor  # [T] float32: of the support set under the adapted state; NaN where nothing was adapted
    )
    reason: Tensor  # [T] int8: index into REASONS
    vectors: Tensor | None  # [T, P] float32, if asked for; NaN for a user served popularity
    propensity: Tensor | None = None  # [T, k] float64, of items drawn at random; None: the best, for certain


@torch.no_grad()  # torch.func.grad, which inner loops use, works under it
def recommend(
    learner: Learner,
    histories: Histories,
    users: Features,
    catalogue: Catalogue,
    *,
    rows: Tensor,
    consumed: Histories | None,
    top_k: int,
    batch_size: int | None = None,
    tile_size: int = 4096,
    newest: int | None = None,
    prepare: Callable[[Examples, Tensor], Examples] | None = None,
    vectors: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 1,
    prefilter: bool = False,
) -> Iterator[Recommended]:
    """Yields the lists of all users of ``rows``, each once, computed in batches of users with histories of like length.

    The answers depend on none of ``batch_size``, ``tile_size`` and ``workers``. No tensor is larger than [batch_size, tile_size]
    (beside what the learner makes itself), so memory does not grow with users x items. On running out of memory the
    batch is halved, once.

    Args:
        learner: moved to ``device`` and into evaluation mode.
        histories: of all users, items as rows of ``catalogue``.
        users: features of all users, row by row those of ``histories``.
        catalogue: only its eligible items are recommended; ``log_popularity`` is the last resort.
        rows: [R] int64: whom to recommend to.
        consumed: what not to recommend again, of all users (often ``histories``); None: nothing.
        top_k: k, or the number of candidates where that is smaller; fewer are listed where fewer are left.
        batch_size: users; None: as many as make a million scores of a tile, 64 at least and 2,048 at most.
        tile_size: items.
        newest: adapt on so many of the newest interactions at most; None: on all.
        prepare: turns the support set of these rows into what the learner adapts on (adds sampled negatives).
        vectors: whether to give a vector per user.
        seed: of the order in which items of equal score are listed.
        device: where to compute.
        workers: batches computed beside each other, by a thread each.
        prefilter: whether learners may rule out items by bf16 first (``Learner.contenders``) from the second
            tile on; the lists are the same.

    Raises:
        ValueError: ``top_k``, ``batch_size``, ``tile_size``, ``newest`` or ``workers`` is below 1.
    """
    for name, value in (
        ("top_k", top_k),
        ("batch_size", batch_size),
        ("tile_size", tile_size),
        ("newest", newest),
        ("workers", workers),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} is at least 1; found {value}")
    learner = learner.to(device).eval()
    catalogue = catalogue.to(device)
    codes = learner.encode(catalogue)
    shop = _Shop.of(codes, catalogue, tile_size=tile_size, top_k=top_k, seed=seed, prefilter=prefilter)
    if batch_size is None:
        batch_size = min(max(_SCORES_TOGETHER // max(min(len(shop.rows), tile_size), 1), 64), 2048)
    lengths = histories.lengths[rows]
    if newest is not None:
        lengths = lengths.clamp(max=newest)
    order = lengths.argsort(descending=True, stable=True)  # longest first: what breaks breaks at once
    rows = rows[order]
    all_taken = None if consumed is None else Ragged(consumed.items, consumed.offsets).take(rows)

    def answered(start: int, stop: int) -> Recommended:
        chunk = rows[start:stop]
        support = collate(histories, chunk, newest=newest)
        shots = support.shots
        cut = histories.offsets[chunk + 1] - histories.offsets[chunk] > shots
        support = (support if prepare is None else prepare(support, chunk)).to(device)
        taken = None if all_taken is None else _slice_of(all_taken, start, stop).to(device)
        batch = _Batch(support, users.take(chunk).to(device), shots.to(device), cut.to(device), taken)
        found = _answered(learner, codes, shop, batch, vectors=vectors)
        return Recommended(
            rows=chunk,
            items=found.items.cpu(),
            scores=found.scores.cpu(),
            source=found.source.cpu(),
            n_support=shots,
            loss_before=found.loss_before.cpu(),
            loss_after=found.loss_after.cpu(),
            reason=found.reason.cpu(),
            vectors=None if found.vectors is None else found.vectors.cpu(),
        )

    ready: list[Recommended] = []
    for some in _in_batches(answered, len(rows), batch_size, workers=workers):
        ready.append(some)
        # Vectors are long: those of a batch are enough.
        if vectors or sum(len(one.rows) for one in ready) >= _USERS_TOGETHER:
            yield joined(ready)
            ready = []
    if ready:
        yield joined(ready)


def _in_batches(
    answered: Callable[[int, int], Recommended], total: int, batch_size: int, *, workers: int
) -> Iterator[Recommended]:
    """Answers 0 .. total - 1 in order, ``workers`` batches at a time. On running out of memory the batches are halved, once,
    and from there on computed one by one.
    """
    done = 0
    try:
        for some in _by_threads(answered, total, batch_size, workers=workers):
            yield some
            done += len(some.rows)
        return
    except (RuntimeError, MemoryError) as error:
        if batch_size == 1 or not out_of_memory(error):
            raise
    # Outside of the handler, whose traceback would hold on to the tensors.
    batch_size = max(1, min(batch_size, total - done) // 2)
    log.warning("out of memory: going on with batches of %d users", batch_size)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    for start in range(done, total, batch_size):
        yield answered(start, min(start + batch_size, total))


def _by_threads(
    answered: Callable[[int, int], Recommended], total: int, batch_size: int, *, workers: int
) -> Iterator[Recommended]:
    """The answers in order. Each thread computes with one thread of torch: two inside are at most 1.75 times as fast as one,
    two beside each other twice, and what is not torch runs beside it.
    """
    spans = ((start, min(start + batch_size, total)) for start in range(0, total, batch_size))
    if workers == 1:
        yield from starmap(answered, spans)
        return

    @torch.no_grad()  # which a thread does not inherit
    def of_thread(span: tuple[int, int]) -> Recommended:
        return answered(*span)

    with ThreadPoolExecutor(workers, "recommend", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        under_way: deque[Future[Recommended]] = deque()
        try:
            for span in spans:
                under_way.append(pool.submit(of_thread, span))
                if len(under_way) > workers:  # one waits, so that no thread does
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def joined(batches: Sequence[Recommended]) -> Recommended:
    """The lists of several batches as one."""
    if len(batches) == 1:
        return batches[0]
    fields = zip(*batches, strict=True)
    return Recommended(*(None if field[0] is None else torch.cat(field) for field in fields))  # type: ignore[arg-type]


class _Batch(NamedTuple):
    """What is known of T users."""

    support: Examples  # prepared
    users: Features
    shots: Tensor  # [T] examples of the history in use
    cut: Tensor  # [T] bool: whether the history is longer
    consumed: Ragged | None  # T lists of rows of the catalogue


class _Answers(NamedTuple):
    """The fields of Recommended that are computed, where they were."""

    items: Tensor
    scores: Tensor
    source: Tensor
    loss_before: Tensor
    loss_after: Tensor
    reason: Tensor
    vectors: Tensor | None


class _Shop(NamedTuple):
    """The candidates, in the order of the catalogue."""

    rows: Tensor  # [C] rows of the catalogue
    place: Tensor  # [I] where each item stands among the candidates; -1 where it does not
    codes: ItemCodes  # [C]
    usable: Tensor | None  # [C] bool: whose codes are finite; None: all
    popularity: Tensor  # [C] float32
    ranks: TieRanks
    tile_size: int
    top_k: int
    prefilter: bool

    @classmethod
    def of(
        cls,
        codes: ItemCodes,
        catalogue: Catalogue,
        *,
        tile_size: int,
        top_k: int,
        seed: int,
        prefilter: bool,
    ) -> "_Shop":
        """The eligible items, coded once."""
        rows = catalogue.eligible.nonzero().squeeze(1)
        place = torch.full_like(catalogue.eligible, -1, dtype=torch.int64)
        place[rows] = torch.arange(len(rows), device=rows.device)
        offered = codes.take(rows)
        usable = offered.vectors.isfinite().flatten(1).all(1) & offered.bias.isfinite()
        if not usable.all():
            log.warning(
                "%d of %d candidates have codes that are not finite", int((~usable).sum()), len(usable)
            )
        popularity = catalogue.log_popularity[rows].float().nan_to_num(0.0, 0.0, 0.0)
        ranks = TieRanks(len(place), seed=seed, device=rows.device)
        everything = bool(usable.all())
        limits = (tile_size, min(top_k, max(len(rows), 1)), prefilter)
        return cls(rows, place, offered, None if everything else usable, popularity, ranks, *limits)

    def most_popular(self, num_users: int, consumed: Ragged | None) -> Tensor:
        """Keys of the most popular, [T, k]."""
        return self.best(num_users, lambda tile, _: self.popularity[tile].unsqueeze(0), consumed, None)[0]

    def best(
        self,
        num_users: int,
        score: Callable[[slice, Tensor], Tensor],
        consumed: Ragged | None,
        usable: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Keys of the best, [T, k], and whether all scores of a user were finite, [T] bool.

        ``score`` gives the scores of a tile of candidates, [T, N] or [1, N], of which only those count that reach what it is
        told, [T].
        """
        device = self.rows.device
        compiled = kernels() if device.type == "cpu" else None
        unwanted = None if consumed is None else _places(consumed, self.place)
        running = Running(self.ranks, num_users, self.top_k, unwanted, device=device, compiled=compiled)
        for start in range(0, len(self.rows), self.tile_size):
            tile = slice(start, min(start + self.tile_size, len(self.rows)))
            running.add(
                score(tile, running.least()).float(),
                self.rows[tile],
                None if usable is None else usable[tile],
            )
        return running.best()


def _answered(learner: Learner, codes: ItemCodes, shop: _Shop, batch: _Batch, *, vectors: bool) -> _Answers:
    """The lists of one batch of users, with the fallbacks."""
    state = _adapted(learner, batch, codes)
    keys, sound = _scored(learner, state, shop, batch.consumed)
    source = torch.where(batch.shots > 0, _FROM_ADAPTED, _FROM_PRIOR)
    reason = torch.where(batch.cut, _CUT, _WHOLE_HISTORY)
    reason[batch.shots == 0] = _NO_HISTORY

    failed = (~(sound & _finite(state))).nonzero().squeeze(1)
    if len(failed):
        # As wide as what was adapted on, in case the learner keeps it in its state.
        blank = _blank(len(failed), batch.support, width=batch.support.mask.shape[1])
        instead = learner.prior(blank, batch.users.take(failed), codes)
        keys[failed], sound = _scored(learner, instead, shop, _lists_of(batch.consumed, failed))
        source[failed] = _FROM_PRIOR
        reason[failed[batch.shots[failed] > 0]] = _INNER_LOOP
        state = {name: value.index_copy(0, failed, instead[name]) for name, value in state.items()}

        hopeless = failed[~(sound & _finite(instead))]
        if len(hopeless):
            keys[hopeless] = shop.most_popular(len(hopeless), _lists_of(batch.consumed, hopeless))
            source[hopeless] = _FROM_POPULARITY
            reason[hopeless] = _PRIOR_FAILED

    items, scores = shop.ranks.read(keys)
    reason[(items < 0).all(1)] = _NO_CANDIDATE
    prior = learner.prior(
        _blank(len(items), batch.support, width=1), batch.users, codes
    )  # costs by the column
    adapted = source == _FROM_ADAPTED
    before, after = (
        learner.task_loss(one, batch.support, codes).float().masked_fill(~adapted, torch.nan)
        for one in (prior, state)
    )
    made = None
    if vectors:
        unserved = (source == _FROM_POPULARITY).unsqueeze(1)
        made = learner.user_vectors(state).float().masked_fill(unserved, torch.nan)
    return _Answers(items, scores, source.to(torch.int8), before, after, reason.to(torch.int8), made)


def _adapted(learner: Learner, batch: _Batch, codes: ItemCodes) -> TaskState:
    """The state of all users, adapted in pieces whose intermediate results stay in a core's cache."""
    users = torch.arange(len(batch.shots), device=batch.shots.device)
    if users.is_cuda or len(users) <= _ADAPTED_TOGETHER:
        return learner.adapt(batch.support, batch.users, codes)
    states = [
        learner.adapt(Examples(*(field[some] for field in batch.support)), batch.users.take(some), codes)
        for some in torch.split(users, _ADAPTED_TOGETHER)
    ]
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def _scored(
    learner: Learner, state: TaskState, shop: _Shop, consumed: Ragged | None
) -> tuple[Tensor, Tensor]:
    """Keys of the best, [T, k], and whether the learner could score at all, [T] bool."""
    num_users = len(next(iter(state.values())))

    def score(tile: slice, least: Tensor) -> Tensor:
        items = shop.codes.take(tile)
        return learner.contenders(state, items, least) if shop.prefilter else learner.predict(state, items)

    keys, sound = shop.best(num_users, score, consumed, shop.usable)
    if shop.usable is not None and not shop.usable.any():
        sound = torch.zeros_like(sound)
    return keys, sound


def _slice_of(lists: Ragged, start: int, stop: int) -> Ragged:
    """The lists start .. stop - 1."""
    offsets = lists.offsets[start : stop + 1]
    return Ragged(lists.values[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0])


def _lists_of(consumed: Ragged | None, tasks: Tensor) -> Ragged | None:
    return None if consumed is None else consumed.take(tasks)


def _blank(num_users: int, like: Examples, *, width: int) -> Examples:
    """Support sets of padding alone: all that a prior needs, and free of what broke the inner loop."""
    return Examples(*(field.new_zeros(num_users, width) for field in like))


def _finite(state: TaskState) -> Tensor:
    """Of which users the whole state is finite, [T] bool."""
    flat = [value.reshape(len(value), -1) for value in state.values()]
    finite = torch.stack([value.sum(1).isfinite() for value in flat]).all(0)  # one pass over most
    suspects = (~finite).nonzero().squeeze(1)  # of large values the sum may overflow
    if len(suspects):
        finite[suspects] = torch.stack([value[suspects].isfinite().all(1) for value in flat]).all(0)
    return finite


def _places(lists: Ragged, place: Tensor) -> Ragged:
    """Where the items of each list stand among the candidates, ascending; without those that do not."""
    owners = torch.arange(len(lists.lengths), device=place.device).repeat_interleave(lists.lengths)
    places = place[lists.values]
    order = (owners * len(place) + places)[places >= 0].sort().values
    owners, places = order.div(len(place), rounding_mode="floor"), order % len(place)
    counts = torch.bincount(owners, minlength=len(lists.lengths))
    return Ragged(places, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left; torch has no exception of its own for the latter."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)

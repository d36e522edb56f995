"""How fast items come and go, in worlds where it is known."""

from datetime import timedelta

import pytest
import torch

from recsys_meta.episodes import Sightings, late_of, mix_of, pace_of, trend_of
from recsys_meta.tensors import Histories

MINUTE = 60_000_000  # microseconds
DAY = timedelta(days=1)
DAYS = 10
END = DAYS * 24 * 60 * MINUTE


def events(per_hour: int = 40) -> tuple[torch.Tensor, torch.Generator]:
    """Times of events, all through ten days, and where chance comes from."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(END, (DAYS * 24 * per_hour,), generator=draw).sort().values, draw


def news() -> Sightings:
    """Every three hours an item comes, and the newest three are asked for alike."""
    times, draw = events()
    newest = times // (180 * MINUTE) - torch.randint(3, times.shape, generator=draw)
    return Sightings(newest.clamp(min=0), times, DAYS * 8 + 1)


def library() -> Sightings:
    """Items that are there from the first day on, the first more popular than the last."""
    times, draw = events()
    popularity = 1 / torch.arange(1.0, 81)
    return Sightings(torch.multinomial(popularity, len(times), replacement=True, generator=draw), times, 80)


def fashion() -> Sightings:
    """Items that are there from the first day on, each popular for three hours in turn, over and over."""
    times, _ = events()
    return Sightings(times // (180 * MINUTE) % 20, times, 20)


def test_news_are_fleeting() -> None:
    pace = pace_of(news(), END, DAY)
    assert pace is not None
    assert pace.fleeting(DAY)
    assert pace.window is not None
    assert pace.window <= timedelta(hours=8)
    assert pace.age == timedelta(0)  # most of what is asked for within a day is not there yet
    assert pace.hits > 1.25 * pace.hits_of_all_time


def test_a_library_is_not() -> None:
    pace = pace_of(library(), END, DAY)
    assert pace is not None
    assert not pace.fleeting(DAY)
    assert pace.age > 3 * DAY


def test_what_comes_back_is_known_by_its_id_however_fast_it_goes() -> None:
    pace = pace_of(fashion(), END, DAY)
    assert pace is not None
    assert not pace.fleeting(DAY)


def test_of_news_a_minute_is_slow() -> None:
    minute = timedelta(minutes=1)
    pace = pace_of(news(), END, minute)
    assert pace is None or not pace.fleeting(minute)


def test_too_short_a_past_says_nothing() -> None:
    assert pace_of(news(), END, timedelta(days=6)) is None
    times, _ = events()
    assert pace_of(Sightings(times // (180 * MINUTE), times[:0], DAYS * 8 + 1), END, DAY) is None
    assert pace_of(Sightings(times[:0], times[:0], 3), END, DAY) is None


def test_nothing_after_the_moment_is_looked_at() -> None:
    times, _ = events()
    moment = END // 2
    before = times < moment
    whole, known = (Sightings(t // (180 * MINUTE), t, DAYS * 8 + 1) for t in (times, times[before]))
    assert pace_of(whole, moment, DAY) == pace_of(known, moment, DAY)


def test_the_share_on_the_list_is_that_counted_by_hand() -> None:
    # Twelve items an hour each for the whole time, but for one that takes every second event.
    times = torch.arange(0, END, 10 * MINUTE)
    items = torch.where(torch.arange(len(times)) % 2 == 0, 0, 1 + torch.arange(len(times)) // 2 % 20)
    pace = pace_of(Sightings(items, times, 21), END, DAY)
    assert pace is not None
    # On the list of ten stand the popular one and nine of twenty others.
    assert abs(pace.hits_of_all_time - (0.5 + 0.5 * 9 / 20)) < 0.03


def hourly_news() -> Sightings:
    """Every hour an item comes, and the newest twelve are asked for alike."""
    times, draw = events(per_hour=120)
    newest = times // (60 * MINUTE) - torch.randint(12, times.shape, generator=draw)
    return Sightings(newest.clamp(min=0), times, DAYS * 24)


def read_by_newcomers(sightings: Sightings, of_each: int = 8) -> Histories:
    """The same events, so many of each user one after the other: everybody comes, reads and goes."""
    users = len(sightings.times_before(END)) // of_each
    return Histories(
        sightings._items[: users * of_each],
        torch.ones(users * of_each),
        sightings.times_before(END)[: users * of_each],
        torch.arange(users + 1) * of_each,
    )


def test_newcomers_read_what_is_new() -> None:
    sightings = hourly_news()
    trend = trend_of(read_by_newcomers(sightings), sightings, END)
    assert trend is not None
    assert trend.window < DAY
    assert trend.window in trend.windows
    assert trend.hits > 2 * trend.hits_of_all_time


def test_newcomers_to_a_library_read_what_everybody_always_read() -> None:
    sightings = library()
    assert trend_of(read_by_newcomers(sightings), sightings, END) is None


def test_a_trend_is_told_from_what_lies_before_the_moment() -> None:
    sightings = hourly_news()
    until = END // 2
    histories = read_by_newcomers(sightings)
    earlier = histories.times < until
    cut = Histories(
        histories.items[earlier],
        histories.values[earlier],
        histories.times[earlier],
        torch.cat([torch.zeros(1, dtype=torch.int64), earlier.cumsum(0)])[histories.offsets],
    )
    known = sightings._times < until
    past = Sightings(sightings._items[known], sightings._times[known], sightings.num_items)
    assert trend_of(histories, sightings, until) == trend_of(cut, past, until)


def test_where_no_list_holds_anything_newcomers_meet_there_is_no_trend() -> None:
    """A thousand items are met once, ten of others often, then the thousand once more with something new after each."""
    again = torch.stack([torch.arange(1000), 2000 + torch.arange(1000)], 1).flatten()
    items = torch.cat([torch.arange(1000), 1000 + torch.arange(100) % 10, again])
    sightings = Sightings(items, torch.arange(len(items)) * MINUTE, 3000)
    assert trend_of(read_by_newcomers(sightings, of_each=20), sightings, len(items) * MINUTE) is None


def slowly_changing() -> Sightings:
    """Forty items, each of them every day twice as popular as on the day before, or half as popular."""
    times, draw = events(per_hour=200)
    days = (times // (24 * 60 * MINUTE)).clamp(max=DAYS - 1)
    steps = torch.where(torch.rand(DAYS, 40, generator=draw) < 0.5, 0.5, 2.0)
    popularity = steps.cumprod(0)[days]
    return Sightings(torch.multinomial(popularity, 1, generator=draw).squeeze(1), times, 40)


def test_newcomers_to_a_library_are_told_by_all_time() -> None:
    sightings = library()
    mix = mix_of(read_by_newcomers(sightings), sightings, END)
    assert mix is None or sum(mix.shares) < 0.5


def test_what_changes_from_day_to_day_is_told_by_the_last_days() -> None:
    sightings = slowly_changing()
    mix = mix_of(read_by_newcomers(sightings), sightings, END)
    assert mix is not None
    assert list(mix.windows) == sorted(mix.windows, reverse=True)
    assert sum(mix.shares) > 0.4
    assert sum(share for window, share in zip(*mix, strict=True) if window < DAY) > 0.4


@pytest.mark.parametrize("world", [library, slowly_changing])
def test_no_other_mixture_makes_what_newcomers_met_likelier(world) -> None:
    """At the maximum, on average over what was met, no window is likelier than the mixture, and those in it are as likely."""
    sightings = world()
    histories = read_by_newcomers(sightings)
    mix = mix_of(histories, sightings, END)
    found = {} if mix is None else dict(zip(*mix, strict=True))
    known = sightings.times_before(END)
    span = timedelta(microseconds=END - int(known[0]))
    windows = [None, span / 4, span / 16, span / 64]
    shares = torch.tensor([1 - sum(found.values()), *(found.get(window, 0.0) for window in windows[1:])])
    likelier = []
    for part in (0.5, 0.6, 0.7, 0.8, 0.9):
        moment = int(known[int(part * len(known))])
        came = histories.times[histories.offsets[:-1]] >= moment
        for user in came.nonzero().squeeze(1).tolist():
            met = histories.items[histories.offsets[user] : histories.offsets[user + 1]].unique()
            met = met[sightings.counts(moment, None)[met] > 0]
            counts = torch.stack([sightings.counts(moment, window) for window in windows]).double()
            chances = counts[:, met] / counts.sum(1, keepdim=True)
            likelier.append(((chances / (shares.double() @ chances)).sum(1), int(came.sum()), len(met)))
    total = sum(of_all / number for of_all, number, _ in likelier)
    weight = sum(met / number for _, number, met in likelier)
    assert (total / weight <= 1.03).all()
    assert ((total / weight - 1).abs()[shares > 0.05] < 0.03).all()


def test_a_mixture_is_told_from_what_lies_before_the_moment() -> None:
    sightings, until = slowly_changing(), END // 2
    histories = read_by_newcomers(sightings)
    mix = mix_of(histories, sightings, until)
    known = sightings._times < until
    past = Sightings(sightings._items[known], sightings._times[known], sightings.num_items)
    assert mix is not None
    assert mix == mix_of(histories, past, until)


def test_too_few_newcomers_say_nothing_of_a_mixture() -> None:
    sightings = slowly_changing()
    histories = read_by_newcomers(sightings, of_each=len(sightings.times_before(END)) // 40)
    assert mix_of(histories, sightings, END) is None
    assert mix_of(histories._replace(times=histories.times[:0]), sightings, END) is None


def shoppers(users: int = 200) -> Histories:
    """Everybody buys ten of twelve staples first, in any order; then half of them fifteen of forty other things."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for user in range(users):
        staples = torch.randperm(12, generator=draw)[:10]
        others = 12 + torch.randperm(40, generator=draw)[: 15 if user % 2 else 0]
        rows.append(torch.cat([staples, others]))
    lengths = torch.tensor([len(row) for row in rows])
    items = torch.cat(rows)
    times = torch.arange(len(items)) * MINUTE
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Histories(items, torch.ones(len(items)), times, offsets)


def test_what_comes_late_is_told_by_what_came_late_to_others() -> None:
    histories = shoppers()
    late = late_of(histories, 52, len(histories.items) * MINUTE, 10)
    assert late is not None
    assert late.after == (10,)  # nothing else is foretold by staples
    assert late.shares[0] > 0.95


def test_where_things_are_met_in_any_order_nothing_comes_late() -> None:
    sightings = library()
    assert late_of(read_by_newcomers(sightings), 80, END, 4) is None


def test_late_is_told_from_enough_users_before_the_moment() -> None:
    histories = shoppers()
    half = int(histories.times[histories.offsets[100]])
    some = late_of(histories, 52, half, 10)
    assert some is not None
    cut = histories.take(torch.arange(100))
    assert some == late_of(cut, 52, half, 10)
    assert late_of(histories.take(torch.arange(58)), 52, END, 10) is None  # 29 of them buy more than staples
    assert late_of(histories, 52, half, 0) is None
    assert late_of(histories._replace(times=histories.times[:0]), 52, half, 10) is None


def test_every_late_event_is_foretold_by_all_others() -> None:
    """Things that one user alone met tell nothing, and of the rest no part is likelier than the mixture, each event left out."""
    draw = torch.Generator().manual_seed(1)
    histories = shoppers()
    alone = torch.rand(len(histories.items), generator=draw) < 0.1
    items = torch.where(alone, 52 + alone.cumsum(0), histories.items)
    histories = histories._replace(items=items)
    num_items, until = int(items.max()) + 1, len(items) * MINUTE
    late = late_of(histories, num_items, until, 8)
    assert late is not None
    found = dict(zip(*late, strict=True))
    after = [0, 2, 4, 8]
    shares = torch.tensor([1 - sum(found.values()), *(found.get(n, 0.0) for n in after[1:])]).double()
    place = torch.cat([torch.arange(int(n)) for n in histories.lengths])
    total, weight = torch.zeros(4, dtype=torch.float64), 0.0
    for user in range(len(histories.lengths)):
        mine = range(int(histories.offsets[user]) + 8, int(histories.offsets[user + 1]))
        for event in mine:
            others = torch.arange(len(items)) != event
            counts = torch.stack(
                [torch.tensor([float((items[others & (place >= n)] == items[event]).sum())]) for n in after]
            ).squeeze(1)
            if counts[0] == 0:
                continue
            chances = counts.double() / torch.tensor([float((others & (place >= n)).sum()) for n in after])
            share = min(len(mine), 10) / len(mine)
            total += share * chances / (shares @ chances)
            weight += share
    assert (total / weight <= 1.03).all()
    assert ((total / weight - 1).abs()[shares > 0.05] < 0.03).all()

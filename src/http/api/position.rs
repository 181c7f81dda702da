//! One channel: its events after a position, at once or as soon as there is one, and its members.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, Uri};
use tokio::time::{Instant, timeout};

use crate::http::api::history::problem;
use crate::http::api::openapi::{BadQuery, NotThere, Unavailable};
use crate::http::api::query::{Known, Query};
use crate::http::api::shapes::{ChannelHistory, ChannelMembers, ChannelPosition};
use crate::http::api::{Answer, Api, Part};
use crate::http::problem::Problem;
use crate::http::routes::json;
use crate::hub::feed::{Following, Item};
use crate::live::Live;
use crate::model::event::{Epoch, Event, epoch_text};
use crate::model::json::push_string;
use crate::model::{Code, Fault, Position, RecoveryVerdict};
use crate::store::{Filter, HISTORY_LIMIT_DEFAULT, HISTORY_LIMIT_MAX};

/// Requests that wait at a time.
pub(super) const WAITING_MAX: usize = 4096;
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Bytes of one answer, unless one event alone has more.
const BYTES_MAX: usize = 16 << 20;
/// Bytes that may be buffered for a waiting request. More is read from the log.
const GATHERED_BYTES_MAX: usize = 64 << 10;
/// Stored events are delivered within this time, unless something is broken.
const SHOWN_WAIT: Duration = Duration::from_secs(5);
/// The most members of an answer, and the default.
const MEMBERS_MAX: u64 = 10_000;
const MEMBERS_DEFAULT: usize = 1000;

/// The parameters of a request.
struct Question {
    since: u64,
    epoch: Option<Epoch>,
    limit: usize,
}

/// The result.
struct Found {
    /// None where the channel never had an event.
    epoch: Option<Epoch>,
    verdict: RecoveryVerdict,
    events: Vec<Arc<Event>>,
}

/// Read a channel from a position on
///
/// The events after `since`, oldest first. `recovered` says whether these are all that were missed, `missed` how many are gone.
/// Continue with `offset` and `epoch` of the answer. With `wait`, an answer that would be empty waits for the next event.
#[utoipa::path(get, path = "/api/channels/{name}/history", tag = "log", operation_id = "channel_history",
    params(("name" = String, Path, description = "The channel's name.", min_length = 1, example = "session:42"), ChannelPosition),
    responses((status = 200, description = "The events after the position.", body = ChannelHistory), BadQuery, NotThere, Unavailable))]
pub(super) async fn history(State(api): State<Arc<Api>>, Part(name): Part, uri: Uri) -> Answer {
    let mut query = Query::of(&uri, &Known { names: &["since", "epoch", "limit", "wait"], repeated: &[], data: false });
    let question = Question {
        since: query.number("since", 0, i64::MAX as u64).unwrap_or(0),
        epoch: query.take("epoch", |text| Epoch::from_str_radix(text, 16).map_err(|_| "must be an epoch of this server".into())),
        limit: query.number("limit", 1, HISTORY_LIMIT_MAX as u64).map_or(HISTORY_LIMIT_DEFAULT, |n| usize::try_from(n).unwrap_or(1)),
    };
    let wait = query.take("wait", wait);
    query.done()?;
    check_there(&api, &name)?;
    let mut found = read(&api, &name, &question).await?;
    if let Some(wait) = wait.filter(|_| found.events.is_empty() && found.verdict.recovered) {
        found = waited(&api, &name, &question, Instant::now() + wait).await?;
    }
    if let Some(last) = found.events.last()
        && timeout(SHOWN_WAIT, shown(&api, &name, last)).await.is_err()
    {
        tracing::warn!(channel = name, offset = last.offset, "what is stored is not shown to subscribers");
    }
    Ok(answer(found))
}

/// List who is on a channel
///
/// Presence: every subscription with its connection, user and metadata.
#[utoipa::path(get, path = "/api/channels/{name}/members", tag = "log", operation_id = "channel_members",
    params(("name" = String, Path, description = "The channel's name.", min_length = 1, example = "session:42"),
        ("limit" = Option<u64>, Query, description = "The most members; 1000 by default.", minimum = 1, maximum = 10000)),
    responses((status = 200, description = "The members.", body = ChannelMembers), BadQuery, NotThere))]
pub(super) async fn members(State(api): State<Arc<Api>>, Part(name): Part, uri: Uri) -> Answer {
    let mut query = Query::of(&uri, &Known { names: &["limit"], repeated: &[], data: false });
    let limit = query.number("limit", 1, MEMBERS_MAX).map_or(MEMBERS_DEFAULT, |n| usize::try_from(n).unwrap_or(1));
    query.done()?;
    check_there(&api, &name)?;
    let members = api.live.hub.members(&name, limit);
    let list: Vec<&str> = members.iter().map(|member| member.as_str()).collect();
    Ok(json(StatusCode::OK, format!("{{\"members\":[{}]}}", list.join(","))))
}

/// Whether a channel exists: it has a position, or it may be published to.
fn check_there(api: &Api, name: &str) -> Result<(), Problem> {
    let snapshot = api.live.snapshot();
    if snapshot.hub.position(name).is_some() || snapshot.runtime.channels.resolve(name).is_some() {
        return Ok(());
    }
    let shown: String = name.chars().take(256).collect();
    Err(Problem::new(StatusCode::NOT_FOUND, format!("there is no channel `{shown}`, and no pattern allows one")))
}

fn wait(text: &str) -> Result<Duration, String> {
    let plain = text.chars().all(|c| c.is_ascii_digit() || "ms".contains(c));
    let wait = humantime::parse_duration(text).ok().filter(|wait| plain && *wait <= WAIT_MAX);
    wait.ok_or_else(|| format!("must be a time such as `30s`, at most {}s", WAIT_MAX.as_secs()))
}

/// The events that exist now: from memory if they are there, else from the log.
async fn read(api: &Api, name: &str, question: &Question) -> Result<Found, Problem> {
    let hub = &api.live.hub;
    let Some(at) = hub.position(name) else {
        let nothing = Position { epoch: 0, first: 1, offset: 0 };
        return Ok(Found { epoch: None, verdict: nothing.recover(question.since, None), events: Vec::new() });
    };
    let verdict = at.recover(question.since, question.epoch);
    let found = |events| Found { epoch: Some(at.epoch), verdict, events };
    if verdict.after >= at.offset {
        return Ok(found(Vec::new()));
    }
    match hub.tail_after(name, verdict.after, question.limit) {
        Some(events) => Ok(found(events)),
        None => stored(api, name, found(Vec::new()), question).await,
    }
}

/// The events that the log has after what was found. The oldest may have been removed since then: then the verdict is another.
async fn stored(api: &Api, name: &str, found: Found, question: &Question) -> Result<Found, Problem> {
    let Found { epoch: Some(epoch), verdict, .. } = found else { return Ok(found) };
    let piece = api.live.store.after(name, epoch, verdict.after, question.limit, BYTES_MAX).await.map_err(problem)?;
    let verdict = verdict.from_there(piece.whole_from.unwrap_or_default());
    Ok(Found { epoch: Some(epoch), verdict, events: piece.events.into_iter().map(Arc::new).collect() })
}

/// Resolves when the channel has reached the event's offset. A committed event is delivered a moment later, and a client that
/// comes back with its position must not hear that there is no such position.
async fn shown(api: &Api, name: &str, event: &Event) {
    let Live { hub, commits, .. } = &*api.live;
    loop {
        // Created before the check, so that a change after the check wakes the task.
        let finished = commits.finished();
        if hub.position(name).is_none_or(|at| at.epoch != event.epoch || at.offset >= event.offset) {
            return;
        }
        finished.await;
    }
}

/// There is nothing yet: waits until there is, the time is over, or the server stops.
async fn waited(api: &Api, name: &str, question: &Question, until: Instant) -> Result<Found, Problem> {
    let _permit = api
        .waiting
        .try_acquire()
        .map_err(|_| Problem::from(Fault::with(Code::Unavailable, format!("{WAITING_MAX} requests are waiting already"))))?;
    let filter = Filter { channels: vec![name.into()], ..Filter::default() };
    let following = api.live.hub.feed.follow(filter, GATHERED_BYTES_MAX);
    loop {
        following.feed_me();
        // Events committed before that may not be delivered yet, and will not come through the feed.
        let mut found = read(api, name, question).await?;
        if found.events.is_empty() && found.verdict.recovered {
            found = stored(api, name, found, question).await?;
        }
        if !found.events.is_empty() || !found.verdict.recovered {
            return Ok(found);
        }
        match fed(api, &following, question, until).await {
            Next::Events(events) => {
                found.epoch = events.first().map(|event| event.epoch);
                found.events = events;
                return Ok(found);
            }
            Next::Over => return Ok(found),
            Next::Look => {}
        }
    }
}

/// What ended a wait.
enum Next {
    Events(Vec<Arc<Event>>),
    /// More came than may be buffered, or events are missing.
    Look,
    Over,
}

async fn fed(api: &Api, following: &Following, question: &Question, until: Instant) -> Next {
    loop {
        let fed = following.take();
        match unbroken(fed.items, question) {
            Some(events) if events.is_empty() && fed.keeps_up && fed.dropped == 0 => {}
            Some(events) if !events.is_empty() => return Next::Events(events),
            _ => return Next::Look,
        }
        tokio::select! {
            () = following.woken() => {}
            () = tokio::time::sleep_until(until) => return Next::Over,
            () = api.stop.cancelled() => return Next::Over,
        }
    }
}

/// The events after the position, as far as they follow it and each other. `None` if the first does not: events between were
/// dropped, or a new stream has begun.
fn unbroken(items: impl IntoIterator<Item = Item>, question: &Question) -> Option<Vec<Arc<Event>>> {
    let (mut seen, mut epoch) = (question.since, question.epoch);
    let mut events = Vec::new();
    for item in items {
        let (event, follows) = match &item {
            // The log may have no event at an offset, if the database refused it.
            Item::Stored(shared) => (&shared.event, true),
            Item::Passing(shared) => (&shared.event, shared.event.offset <= seen + 1),
            Item::Counted(_) => continue,
        };
        if !follows || epoch.is_some_and(|epoch| epoch != event.epoch) {
            return (!events.is_empty()).then_some(events);
        }
        if event.offset > seen && events.len() < question.limit {
            (seen, epoch) = (event.offset, Some(event.epoch));
            events.push(event.clone());
        }
    }
    Some(events)
}

fn answer(found: Found) -> Response<Body> {
    let mut out = String::from("{\"events\":[");
    for (i, event) in found.events.iter().enumerate() {
        out.push_str(if i == 0 { "" } else { "," });
        out.push_str(&event.to_json());
    }
    let RecoveryVerdict { recovered, missed, after } = found.verdict;
    let offset = found.events.last().map_or(after, |event| event.offset);
    let missed = missed.map_or("null".to_owned(), |missed| missed.to_string());
    out.push_str(&format!("],\"offset\":{offset},\"epoch\":"));
    match found.epoch {
        Some(epoch) => push_string(&mut out, &epoch_text(epoch)),
        None => out.push_str("null"),
    }
    out.push_str(&format!(",\"recovered\":{recovered},\"missed\":{missed}}}"));
    json(StatusCode::OK, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::feed::Feed;
    use crate::model::event::NewEvent;
    use crate::model::{ChannelName, Json};

    const EPOCH: Epoch = 7;

    /// An event that no log keeps, with a type of this size.
    fn passing(epoch: Epoch, offset: u64, size: usize) -> Arc<Event> {
        let kind = "x".repeat(size).into();
        let new = NewEvent { id: uuid::Uuid::now_v7(), kind, data: Json::null(), time_ms: 0, origin: Arc::default(), metadata: None };
        Arc::new(Event { new, channel: ChannelName::parse("live"), offset, epoch, seq: 0 })
    }

    /// The offsets that a request gets which waits after offset 2 for these.
    async fn got(events: &[Arc<Event>], epoch: Option<Epoch>, limit: usize) -> Option<Vec<u64>> {
        let feed = Arc::new(Feed::default());
        let following = feed.follow(Filter::default(), 2000);
        events.iter().for_each(|event| feed.passing(event));
        tokio::select! {
            () = feed.run() => {}
            () = following.woken() => {}
        }
        let events = unbroken(following.take().items, &Question { since: 2, epoch, limit })?;
        Some(events.iter().map(|event| event.offset).collect())
    }

    #[tokio::test]
    async fn a_wait_gets_events_only_as_far_as_none_is_missing() {
        let small = |offsets: std::ops::RangeInclusive<u64>| offsets.map(|offset| passing(EPOCH, offset, 1)).collect::<Vec<_>>();
        assert_eq!(got(&small(1..=5), Some(EPOCH), 10).await, Some(vec![3, 4, 5]));
        assert_eq!(got(&small(3..=5), None, 2).await, Some(vec![3, 4]));
        assert_eq!(got(&small(1..=2), Some(EPOCH), 10).await, Some(vec![]));
        assert_eq!(got(&small(4..=5), Some(EPOCH), 10).await, None);
        // The fourth is too large for what may be buffered.
        let dropped = [small(3..=3), vec![passing(EPOCH, 4, 5000)], small(5..=5)].concat();
        assert_eq!(got(&dropped, Some(EPOCH), 10).await, Some(vec![3]));
        let begun_again = [small(3..=4), vec![passing(EPOCH + 1, 5, 1)]].concat();
        assert_eq!(got(&begun_again, Some(EPOCH), 10).await, Some(vec![3, 4]));
        assert_eq!(got(&begun_again, None, 10).await, Some(vec![3, 4]));
        assert_eq!(got(&begun_again[2..], Some(EPOCH), 10).await, None);
    }
}

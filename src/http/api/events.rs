//! `GET /api/events`: all new events, as Server-Sent Events.
//!
//! A stream is a reader of the log with a position. It reads on from there until nothing is left, subscribes to the feed of new
//! events, reads once more what came before the feed began, and then is live. If it falls behind it starts again from its
//! position. So no event comes twice, none is left out, and nothing is buffered without bound. Those that are removed from the
//! log before it has read them are counted.

mod stream_position;

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderMap, Response, Uri};
use bytes::Bytes;
use futures_util::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use crate::http::api::history::problem;
use crate::http::api::openapi::{BadQuery, Unavailable};
use crate::http::api::query::{FILTER, Known, Query};
use crate::http::api::shapes::{EventFilter, EventsAfter};
use crate::http::api::{Answer, Api};
use crate::http::problem::Problem;
use crate::hub::feed::{Following, Item};
use crate::model::json::one_line;
use crate::model::{Code, Event, Fault};
use crate::store::{Filter, StoreError, Walk};
use stream_position::{Start, StreamPosition, gap, start};

/// Streams open at a time.
pub(super) const STREAMS_MAX: usize = 8192;
/// Streams that read the log at a time, so that other streams and queries get their turn.
pub(super) const READING_MAX: usize = 2;
/// Bytes that may be buffered for one stream.
const GATHERED_BYTES_MAX: usize = 128 << 10;
/// Events that are counted to say how many a stream missed while it read the log. It is done for each piece that is read.
const COUNTED_MAX: u64 = 100_000;
/// The time between two keep-alive comments.
const PING_EVERY: Duration = Duration::from_secs(15);

/// Follow the log
///
/// Server-Sent Events: all new events that match the filter, which may name several channels. The first event is named
/// `position`; it says whether a stream that resumes gets everything it missed. If events are removed from the log before the
/// stream has read them, another one says so in their place: `missed` is their number, or null if that is not known.
///
/// The `id` of an event is a position in the log: browsers send the last one by themselves when they reconnect, as
/// `Last-Event-ID`. Events of channels without a history come without an `id`, and those that were dropped because a stream did
/// not keep up are counted in an event named `dropped`.
#[utoipa::path(get, path = "/api/events", tag = "log", operation_id = "events", params(EventFilter, EventsAfter,
        ("last-event-id" = Option<String>, Header, description = "The `id` of the last event that was received.")),
    responses((status = 200, description = "A stream that does not end.", content_type = "text/event-stream", body = String),
        BadQuery, Unavailable))]
pub(super) async fn events(State(api): State<Arc<Api>>, headers: HeaderMap, uri: Uri) -> Answer {
    let names: Vec<&str> = FILTER.into_iter().chain(["after"]).collect();
    let mut query = Query::of(&uri, &Known { names: &names, repeated: &["channel"], data: true });
    let filter = query.filter(api.live.now());
    let after = query.take("after", |text| {
        StreamPosition::parse(text).ok_or_else(|| {
            "must be what a line `id:` of this stream says, or `id` of its event `position`; the `id` of an event is something else".into()
        })
    });
    query.done()?;
    let permit = api
        .streams
        .clone()
        .try_acquire_owned()
        .map_err(|_| Problem::from(Fault::with(Code::Unavailable, format!("{STREAMS_MAX} streams are open already"))))?;
    // The header that browsers send when they reconnect is newer than the parameter in the address.
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty());
    let given = last.map(StreamPosition::parse).or(after.map(Some));
    // Before the position is read, so that no event from now on is missed.
    let following = api.live.hub.feed.follow(filter.clone(), GATHERED_BYTES_MAX);
    let start = start(&api.live.store, &filter, given).await.map_err(problem)?;
    let stream = Stream::new(api, filter, following, start, permit);
    let pieces = unfold(stream, async |mut stream| {
        let piece = stream.piece().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), stream))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

struct Stream {
    api: Arc<Api>,
    filter: Filter,
    following: Following,
    /// Everything up to here was written, or does not match the filter.
    position: StreamPosition,
    mode: Mode,
    /// What is to be written next.
    out: String,
    ping_at: Instant,
    _permit: OwnedSemaphorePermit,
}

enum Mode {
    /// Reads the log. `fed`: events that are committed meanwhile come through the feed.
    Reads {
        walk: Option<Box<Walk>>,
        fed: bool,
    },
    Live,
}

impl Stream {
    fn new(api: Arc<Api>, filter: Filter, following: Following, start: Start, permit: OwnedSemaphorePermit) -> Self {
        let out = format!("retry: 1000\n{}", start.written());
        // A stream that begins now has almost nothing to read.
        let fed = start.is_now();
        if fed {
            following.feed_me();
        }
        let mode = Mode::Reads { walk: None, fed };
        Self { api, filter, following, position: start.position, mode, out, ping_at: Instant::now() + PING_EVERY, _permit: permit }
    }

    /// What is written next; none if the stream ends. A client whose stream ended continues where it was.
    async fn piece(&mut self) -> Option<Bytes> {
        let stop = self.api.stop.clone();
        while self.out.is_empty() {
            tokio::select! {
                () = stop.cancelled() => return None,
                () = sleep_until(self.ping_at) => write!(self.out, ": ping\nid: {}\n\n", self.position).ok()?,
                read = self.step() => if let Err(error) = read {
                    tracing::warn!(%error, "a stream of events cannot read the log");
                    return None;
                },
            }
        }
        self.ping_at = Instant::now() + PING_EVERY;
        Some(Bytes::from(std::mem::take(&mut self.out)))
    }

    /// One read of the log or of the feed. If it is dropped half way it has done nothing.
    async fn step(&mut self) -> Result<(), StoreError> {
        match &mut self.mode {
            Mode::Live => {
                if !self.take_fed() {
                    self.mode = Mode::Reads { walk: None, fed: false };
                } else if self.out.is_empty() {
                    self.following.woken().await;
                }
                Ok(())
            }
            Mode::Reads { walk, fed } => {
                let (walk, fed) = (walk.take(), *fed);
                let api = self.api.clone();
                let _turn = api.reading.acquire().await;
                let mut walk = match walk {
                    Some(walk) => walk,
                    None => Box::new(api.live.store.walk(&self.filter, self.position.seq).await?),
                };
                let read = walk.next().await?;
                let events = read.as_deref().unwrap_or_default();
                // After the last piece there is another walk, unless the feed is on.
                let gap = if fed || !events.is_empty() {
                    gap(&api.live.store, &self.filter, self.position, events, COUNTED_MAX).await?
                } else {
                    None
                };
                let keeps_fed = gap.is_none_or(|gap| self.tell(&gap));
                let fed = fed && keeps_fed;
                events.iter().for_each(|event| self.read(event));
                if read.is_none() {
                    self.end_of_log(fed);
                    return Ok(());
                }
                self.mode = Mode::Reads { walk: Some(walk), fed };
                if !fed {
                    self.take_fed();
                }
                Ok(())
            }
        }
    }

    /// Says that events are gone which the stream has yet to get. `false`: it can only go on by reading the log, because those that
    /// wait in the feed may be among them.
    fn tell(&mut self, gap: &Start) -> bool {
        self.out.push_str(&gap.written());
        self.position = gap.position;
        if gap.is_counted() {
            self.following.read_on();
        }
        !gap.is_counted()
    }

    /// There is nothing more to read. If the feed is on, its events come after what was read.
    fn end_of_log(&mut self, fed: bool) {
        if fed {
            self.mode = Mode::Live;
        } else {
            self.take_fed();
            self.following.feed_me();
            self.mode = Mode::Reads { walk: None, fed: true };
        }
    }

    /// Writes what the feed brought. `false`: the feed has ended.
    fn take_fed(&mut self) -> bool {
        let fed = self.following.take();
        for item in fed.items {
            match item {
                Item::Stored(shared) => {
                    // Events that were already read may come again.
                    if self.passed(shared.event.seq) {
                        self.write(shared.line(), true);
                    }
                }
                Item::Counted(seq) => {
                    self.passed(seq);
                }
                Item::Passing(shared) => self.write(shared.line(), false),
            }
        }
        if fed.dropped > 0 {
            // Writing to a text does not fail.
            write!(self.out, "event: dropped\ndata: {{\"count\":{}}}\n\n", fed.dropped).ok();
        }
        fed.keeps_up
    }

    /// An event of the stream's channels was read, in the order of the log.
    fn read(&mut self, event: &Event) {
        if self.passed(event.seq) && self.filter.matches_within(event) {
            self.write(&one_line(&event.to_json()), true);
        }
    }

    /// Moves the stream's position past an event of its channels. Returns whether it was before it until now.
    fn passed(&mut self, seq: u64) -> bool {
        let new = seq > self.position.seq;
        if new {
            self.position.seq = seq;
            self.position.count = self.position.count.map(|count| count.saturating_add(1));
        }
        new
    }

    /// Writes an event. Only its `id` belongs to the stream: the rest is the same for all.
    fn write(&mut self, line: &str, stored: bool) {
        if stored {
            writeln!(self.out, "id: {}", self.position).ok();
        }
        self.out.push_str("data: ");
        self.out.push_str(line);
        self.out.push_str("\n\n");
    }
}

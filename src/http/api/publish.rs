//! `POST /api/publish` and `POST /api/sources/{name}`: events from the application.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::Guard;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::apply::in_time;
use crate::http::api::openapi::{BadBody, Broken, Failed, Late, NotJson, NotThere, TooLarge, TooMany, Unavailable};
use crate::http::api::shapes::{Publish, PublishedAnswer, SourceEvent};
use crate::http::api::{Api, Part};
use crate::http::body::{read_json, request_view};
use crate::http::problem::Problem;
use crate::http::routes::{conclude, json, published};
use crate::model::event::Origin;
use crate::model::fault::Flaw;
use crate::model::json::{as_text, items, key_is, members};
use crate::model::{Fault, Json};
use crate::pipeline::publish::{Destination, Proposal};

/// The largest body.
pub(super) const BODY_BYTES_MAX: usize = 16 << 20;

/// The most targets of one call.
const TARGETS_MAX: usize = 1000;

/// The longest `type`, in characters.
const TYPE_CHARS_MAX: usize = 256;

/// The longest `id`, in characters.
const ID_CHARS_MAX: usize = 128;

/// How long an `id` publishes once.
const ONCE_WITHIN: Duration = Duration::from_secs(300);

/// How many ids are remembered. The oldest goes first.
const IDS_MAX: usize = 50_000;

/// Publish an event
///
/// To one channel, user, session or connection, or to several: then to all of them or to none. If the channel keeps a history,
/// the answer comes once the event is stored.
#[utoipa::path(post, path = "/api/publish", tag = "publish",
    request_body(content = Publish, description = "At most 16 MiB.",
        example = json!({ "channel": "session:42", "type": "note", "data": { "text": "hello" } })),
    responses((status = 202, description = "Published.", body = PublishedAnswer),
        BadBody, NotThere, Late, TooLarge, NotJson, Broken, TooMany, Unavailable))]
pub(super) async fn publish(State(api): State<Arc<Api>>, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let (parts, body) = request.into_parts();
    let body = read_json(&parts, body, BODY_BYTES_MAX).await?.ok_or_else(no_body)?;
    let order = Order::read(&body).map_err(invalid)?;
    let (now, snapshot) = (api.live.now(), Guard::into_inner(api.live.snapshot()));
    let except = order.except.as_ref().and_then(|id| api.live.hub.connection(id)).map(|c| c.key);
    let proposal = Proposal {
        kind: order.kind.as_str().into(),
        data: order.data.clone().unwrap_or_else(Json::empty_object),
        metadata: order.metadata.clone(),
        origin: Arc::new(Origin { source: "api".into(), ..Origin::default() }),
        // A single event may take the given id; several events each get their own.
        id: order.id.as_deref().filter(|_| order.targets.len() == 1).and_then(|id| Uuid::parse_str(id).ok()),
        except,
    };
    let go = || -> Result<Answer, Fault> {
        let (accepted, store) = (api.live.publish(&snapshot, &order.targets, &proposal, now)?, api.live.store.clone());
        Ok(async move { Ok(published(&accepted.settled(&store).await?)) }.boxed().shared())
    };
    let answer = match &order.id {
        None => in_time(go().map_err(Problem::with_reason)?).await.map_err(Problem::with_reason)?,
        Some(id) => {
            // One lock from the look-up to the entry: of two calls at once with one id, one publishes, and both wait for it.
            let answer = api.recent.lock().once(id, order.hash(), now.instant, go)?;
            let answer = in_time(answer.clone()).await.inspect_err(|_| {
                if matches!(answer.peek(), Some(Err(_))) {
                    api.recent.lock().forget(id, &answer);
                }
            });
            answer.map_err(Problem::with_reason)?
        }
    };
    let answer = if order.is_list && !answer.is_array() { serde_json::json!([answer]) } else { answer };
    Ok(json(StatusCode::ACCEPTED, answer.to_string()))
}

/// Publish as a source
///
/// The event passes through the source's rows, as if the source had produced it.
#[utoipa::path(post, path = "/api/sources/{name}", tag = "publish", operation_id = "publish_as_source",
    params(("name" = String, Path, description = "The source's name.", min_length = 1)),
    request_body(content = SourceEvent, description = "At most 16 MiB.", example = json!({ "type": "tick", "data": { "n": 1 } })),
    responses((status = 202, description = "What was published: one event, or a list of zero or more.", body = PublishedAnswer),
        BadBody, NotThere, Late, TooLarge, NotJson, Broken, TooMany, Failed, Unavailable))]
pub(super) async fn source(State(api): State<Arc<Api>>, Part(name): Part, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let snapshot = Guard::into_inner(api.live.snapshot());
    let sources = &snapshot.runtime.plan.sources;
    let known = || match &*sources.iter().map(|s| format!("`{}`", s.name)).collect::<Vec<_>>().join(", ") {
        "" => "the routes file has none".to_owned(),
        names => format!("known here: {names}"),
    };
    let source = sources
        .iter()
        .find(|s| *s.name == name)
        .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no source `{name}`; {}", known())))?;
    let (parts, body) = request.into_parts();
    let body = read_json(&parts, body, BODY_BYTES_MAX).await?.ok_or_else(no_body)?;
    let view = request_view(&parts, Vec::new());
    let promised = api.live.source(&snapshot, source, &body, Some(&view), api.live.now()).map_err(Problem::with_reason)?;
    conclude(&api.live, promised, false).await.map_err(Problem::with_reason)
}

pub(super) fn no_body() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "the request has no body; it must be a JSON object")
}

pub(super) fn invalid(errors: Vec<Flaw>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "the body is not valid for this call").errors(errors)
}

/// The contents of a body.
struct Order {
    targets: Vec<Destination>,
    is_list: bool,
    kind: String,
    data: Option<Json>,
    metadata: Option<Json>,
    id: Option<String>,
    except: Option<String>,
}

impl Order {
    /// Reads a body and names everything that is wrong with it.
    fn read(body: &Json) -> Result<Self, Vec<Flaw>> {
        let mut order =
            Order { targets: Vec::new(), is_list: false, kind: "event".into(), data: None, metadata: None, id: None, except: None };
        let mut flaws = Vec::new();
        if !body.as_str().trim_start().starts_with('{') {
            return Err(vec![Flaw { path: String::new(), message: "must be an object".into() }]);
        }
        let mut named = 0;
        for (key, value) in members(body.as_str()) {
            let mut wrong = |path: &str, message: &str| flaws.push(Flaw { path: format!("/{path}"), message: message.into() });
            let text = || as_text(value).filter(|text| !text.is_empty()).map(std::borrow::Cow::into_owned);
            let is = |name: &str| key_is(key, name);
            if let Some((name, wrap)) = TARGETS.iter().find(|(name, _)| is(name)) {
                named += 1;
                order.is_list = value.starts_with('[');
                let all: Vec<&str> = if order.is_list { items(value).collect() } else { vec![value] };
                if all.is_empty() || all.len() > TARGETS_MAX {
                    wrong(name, &format!("must name 1 to {TARGETS_MAX} targets"));
                }
                for (i, item) in all.iter().take(TARGETS_MAX).enumerate() {
                    match as_text(item).filter(|text| !text.is_empty()) {
                        Some(text) => order.targets.push(wrap(text.into_owned())),
                        None if order.is_list => wrong(&format!("{name}/{i}"), "must be a text that is not empty"),
                        None => wrong(name, "must be a text that is not empty, or a list of such texts"),
                    }
                }
            } else if is("type") {
                match text() {
                    Some(kind) if kind.chars().count() <= TYPE_CHARS_MAX => order.kind = kind,
                    _ => wrong("type", &format!("must be a text of 1 to {TYPE_CHARS_MAX} characters")),
                }
            } else if is("data") {
                order.data = Some(body.slice(value));
            } else if is("metadata") {
                if value.starts_with('{') { order.metadata = Some(body.slice(value)) } else { wrong("metadata", "must be an object") }
            } else if is("id") {
                match text() {
                    Some(id) if id.chars().count() <= ID_CHARS_MAX => order.id = Some(id),
                    _ => wrong("id", &format!("must be a text of 1 to {ID_CHARS_MAX} characters")),
                }
            } else if is("except") {
                match text() {
                    Some(id) => order.except = Some(id),
                    None => wrong("except", "must be the id of a client"),
                }
            } else {
                let shown: String = key.trim_matches('"').chars().take(100).collect();
                wrong(&shown, "unknown key; known here: channel, user, session, client, type, data, id, metadata, except");
            }
        }
        if named != 1 {
            let message = match named {
                0 => "must name one target by one of these keys: `channel`, `user`, `session`, `client`",
                _ => "must name one target: only one of the keys `channel`, `user`, `session`, `client` may be there",
            };
            flaws.push(Flaw { path: String::new(), message: message.into() });
        }
        if flaws.is_empty() { Ok(order) } else { Err(flaws) }
    }
}

impl Order {
    /// What the order says besides its id: the same for a call that is made again.
    fn hash(&self) -> OrderHash {
        let mut hash = Sha256::new();
        let mut add = |text: Option<&str>| {
            hash.update(text.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
            hash.update(text.unwrap_or_default());
        };
        add(Some(&self.kind));
        add(self.data.as_ref().map(Json::as_str));
        add(self.metadata.as_ref().map(Json::as_str));
        add(self.except.as_deref());
        for target in &self.targets {
            let (kind, name) = match target {
                Destination::Channel(name) => ("channel", name),
                Destination::User(name) => ("user", name),
                Destination::Session(name) => ("session", name),
                Destination::Client(name) => ("client", name),
            };
            add(Some(kind));
            add(Some(name));
        }
        hash.finalize().into()
    }
}

type OrderHash = [u8; 32];

type Wrap = fn(String) -> Destination;

const TARGETS: [(&str, Wrap); 4] =
    [("channel", Destination::Channel), ("user", Destination::User), ("session", Destination::Session), ("client", Destination::Client)];

/// The answer of a call once its events are stored. Another call with the same id waits for the same answer.
type Answer = Shared<BoxFuture<'static, Result<serde_json::Value, Fault>>>;

/// The ids of the last minutes with their answers.
#[derive(Default)]
pub(super) struct Recent {
    answers: HashMap<String, Known>,
    order: VecDeque<(Instant, String)>,
}

/// What became of an id.
struct Known {
    at: Instant,
    order: OrderHash,
    answer: Answer,
}

/// [`Recent`], shared. Locked from the look-up to the insertion, for one publish.
pub(super) type RecentIds = Mutex<Recent>;

impl Recent {
    /// The answer of the call that had this id, or of this one. A call that says something else than the one before would be lost
    /// without a word, so it is refused.
    fn once(&mut self, id: &str, order: OrderHash, now: Instant, go: impl FnOnce() -> Result<Answer, Fault>) -> Result<Answer, Problem> {
        self.sweep(now);
        if let Some(known) = self.answers.get(id) {
            if known.order != order {
                let minutes = ONCE_WITHIN.as_secs() / 60;
                let detail =
                    format!("the id `{id}` was used in the last {minutes} minutes for another event; each event needs an id of its own");
                return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
            }
            return Ok(known.answer.clone());
        }
        let answer = go().map_err(Problem::with_reason)?;
        self.order.push_back((now, id.to_owned()));
        self.answers.insert(id.to_owned(), Known { at: now, order, answer: answer.clone() });
        Ok(answer)
    }

    /// The call with this answer failed: another call with the same id publishes. One that did so already stays known.
    fn forget(&mut self, id: &str, answer: &Answer) {
        if self.answers.get(id).is_some_and(|known| known.answer.ptr_eq(answer)) {
            self.answers.remove(id);
        }
    }

    fn sweep(&mut self, now: Instant) {
        while let Some((at, oldest)) = self.order.front() {
            if now.saturating_duration_since(*at) < ONCE_WITHIN && self.order.len() < IDS_MAX {
                break;
            }
            // An id that was forgotten may have been used again since.
            if self.answers.get(oldest).is_some_and(|known| known.at == *at) {
                self.answers.remove(oldest);
            }
            self.order.pop_front();
        }
    }
}

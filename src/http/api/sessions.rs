//! `/api/sessions`: identities that outlive a connection. A connection with the id of a session has the session's user.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{HeaderValue, LOCATION};
use axum::http::{Request, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::http::api::history::problem;
use crate::http::api::openapi::{BadBody, BadQuery, Late, NotJson, NotThere, TooLarge, Unavailable};
use crate::http::api::publish::{invalid, no_body};
use crate::http::api::query::{Known, Query, duration};
use crate::http::api::shapes::NewSession;
use crate::http::api::{Answer, Api, LIMIT_DEFAULT, Part, ok};
use crate::http::body::read_json;
use crate::http::problem::Problem;
use crate::http::routes::json;
use crate::model::clock::iso;
use crate::model::close::SESSION_ENDED;
use crate::model::fault::Flaw;
use crate::model::json::{as_text, key_is, members};
use crate::model::name::{ClientId, PRINCIPAL_BYTES_MAX, SessionId, UserId, is_principal};
use crate::model::{Close, Code, Fault, Json};
use crate::store::{LISTING_LIMIT_MAX, SessionRecord, Ticket, Unavailable as Refused};

/// The largest body.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The largest `meta`.
const META_BYTES_MAX: usize = 16 << 10;

/// The longest `name`, in characters.
const NAME_CHARS_MAX: usize = 200;

/// The default lifetime of a session.
const TTL_DEFAULT: Duration = Duration::from_secs(24 * 3600);

/// The longest a session may last.
const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A new session.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Begun {
    /// The id by which connections name it. Treat it like a password.
    #[schema(format = "uuid")]
    session_id: String,
    /// When it ends.
    #[schema(format = DateTime)]
    expires_at: String,
}

/// A session.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Session {
    /// The id by which connections name it.
    #[schema(value_type = String)]
    session_id: SessionId,
    /// Its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    user_id: Option<UserId>,
    /// Its name, for people to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Arc<str>>,
    /// Its metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = serde_json::Value, required = false)]
    meta: Option<Box<RawValue>>,
    /// When it was created.
    #[schema(format = DateTime)]
    created: String,
    /// When it ends.
    #[schema(format = DateTime)]
    expires_at: String,
    /// When one of its connections last opened or closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    seen: Option<String>,
    /// The ids of its open connections.
    #[schema(value_type = Vec<String>)]
    connections: Vec<ClientId>,
}

/// A page of sessions.
#[derive(Serialize, ToSchema)]
struct Sessions {
    /// The sessions that have not ended.
    sessions: Vec<Session>,
    /// `cursor` of the next page; null on the last.
    #[schema(required)]
    next: Option<String>,
}

impl Session {
    fn of(api: &Api, record: SessionRecord) -> Self {
        let connections = api.live.hub.of_session(&record.id).iter().map(|c| c.id.clone()).collect();
        Self {
            session_id: record.id,
            user_id: record.user,
            name: record.name,
            meta: record.meta.and_then(|meta| RawValue::from_string(meta.as_str().to_owned()).ok()),
            created: iso(record.created_ms),
            expires_at: iso(record.expires_ms),
            seen: record.seen_ms.map(iso),
            connections,
        }
    }
}

/// Create a session
///
/// A connection that names it (`session:` of its protocol) and has no user of its own gets its user. The answer comes once the
/// session is stored.
#[utoipa::path(post, path = "/api/sessions", tag = "sessions", operation_id = "begin_session",
    request_body(content = NewSession, description = "At most 64 KiB. `{}` creates a session without a user that lasts a day.",
        example = json!({ "userId": "42", "name": "Ada's phone", "ttl": "24h", "meta": { "theme": "dark" } })),
    responses(
        (status = 201, description = "The session was created.", body = Begun, headers(("location" = String, description = "The path of the session."))),
        BadBody, Late, TooLarge, NotJson, Unavailable))]
pub(super) async fn begin(State(api): State<Arc<Api>>, request: Request<Body>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = read_json(&parts, body, BODY_BYTES_MAX).await?.ok_or_else(no_body)?;
    let order = Order::read(&body).map_err(invalid)?;
    let now = api.live.now();
    let ttl_ms = i64::try_from(order.ttl.as_millis()).unwrap_or(i64::MAX);
    let record = SessionRecord {
        id: Uuid::new_v4().to_string().into(),
        user: order.user,
        name: order.name,
        meta: order.meta,
        created_ms: now.wall_ms,
        expires_ms: now.wall_ms.saturating_add(ttl_ms),
        seen_ms: None,
    };
    let begun = Begun { session_id: record.id.to_string(), expires_at: iso(record.expires_ms) };
    stored(&api, api.live.store.put_session(record)).await?;
    api.sessions.noted();
    let mut response = json(StatusCode::CREATED, Json::of(&begun).as_str().to_owned());
    if let Ok(place) = HeaderValue::from_str(&format!("/api/sessions/{}", begun.session_id)) {
        response.headers_mut().insert(LOCATION, place);
    }
    Ok(response)
}

/// Waits until it is in the database.
async fn stored(api: &Api, appended: Result<Ticket, Refused>) -> Result<(), Problem> {
    let ticket = appended.map_err(|why| Problem::from(Fault::with(Code::Unavailable, why.to_string())))?;
    api.live.store.committed(ticket).await.map_err(|why| {
        tracing::warn!(%why, "a session is not stored");
        Fault::with(Code::Unavailable, "not stored: the store does not answer; see /readyz").into()
    })
}

/// Which sessions.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "described; read by `Query`")]
pub(super) struct Which {
    /// Only those of this user.
    #[param(min_length = 1, max_length = 256)]
    user: Option<String>,
    /// The most sessions in a page; 100 by default. A page may have fewer, because sessions that have ended are left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// `next` of the previous page; the other parameters must be the same.
    cursor: Option<String>,
}

/// List sessions
///
/// In the order of their ids.
#[utoipa::path(get, path = "/api/sessions", tag = "sessions", params(Which),
    responses((status = 200, description = "A page.", body = Sessions), BadQuery, Unavailable))]
pub(super) async fn sessions(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    let mut query = Query::of(&uri, &Known { names: &["user", "limit", "cursor"], repeated: &[], data: false });
    let user = query.word("user");
    let limit = query.number("limit", 1, LISTING_LIMIT_MAX as u64).and_then(|n| usize::try_from(n).ok()).unwrap_or(LIMIT_DEFAULT);
    let cursor = query.take("cursor", |text| Ok(text.to_owned()));
    query.done()?;
    let now = api.live.now();
    let page = api.live.store.sessions(user.as_deref(), limit, cursor.as_deref()).await.map_err(problem)?;
    let sessions = page.entries.into_iter().filter(|s| s.expires_ms > now.wall_ms).map(|record| Session::of(&api, record)).collect();
    ok(&Sessions { sessions, next: page.next })
}

/// Show a session
#[utoipa::path(get, path = "/api/sessions/{id}", tag = "sessions",
    params(("id" = String, Path, description = "The session's id.", min_length = 1)),
    responses((status = 200, description = "The session, which has not ended.", body = Session), BadQuery, NotThere, Unavailable))]
pub(super) async fn one_session(State(api): State<Arc<Api>>, Part(id): Part, uri: Uri) -> Answer {
    Query::nothing(&uri)?;
    ok(&Session::of(&api, find(&api, &id).await?))
}

/// End a session
///
/// Its connections are closed with 1008 and `session ended`.
#[utoipa::path(delete, path = "/api/sessions/{id}", tag = "sessions", operation_id = "end_session",
    params(("id" = String, Path, description = "The session's id.", min_length = 1)),
    responses((status = 204, description = "The session has ended."), BadQuery, NotThere, NotJson, Unavailable))]
pub(super) async fn end(State(api): State<Arc<Api>>, Part(id): Part, uri: Uri) -> Result<Response<Body>, Problem> {
    Query::nothing(&uri)?;
    let session = find(&api, &id).await?;
    stored(&api, api.live.store.end_session(session.id)).await?;
    for connection in api.live.hub.of_session(&id) {
        api.live.end(&connection, Close::Asked(SESSION_ENDED.0, SESSION_ENDED.1.into()));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn find(api: &Api, id: &str) -> Result<SessionRecord, Problem> {
    let found = if id.contains('\0') { None } else { api.sessions.find(id, api.live.now()).await.map_err(problem)? };
    found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no such session, or it has ended"))
}

/// The contents of a body.
struct Order {
    user: Option<UserId>,
    name: Option<Arc<str>>,
    ttl: Duration,
    meta: Option<Json>,
}

impl Default for Order {
    fn default() -> Self {
        Self { user: None, name: None, ttl: TTL_DEFAULT, meta: None }
    }
}

impl Order {
    /// Reads a body and names everything that is wrong with it.
    fn read(body: &Json) -> Result<Self, Vec<Flaw>> {
        let (mut order, mut flaws) = (Self::default(), Vec::new());
        let mut wrong = |path: &str, message: String| flaws.push(Flaw { path: path.into(), message });
        if !body.as_str().trim_start().starts_with('{') {
            wrong("", "must be an object".into());
        }
        for (key, value) in members(body.as_str()) {
            if key_is(key, "userId") {
                match as_text(value).filter(|text| is_principal(text)) {
                    Some(user) => order.user = Some(user.into()),
                    None => {
                        wrong("/userId", format!("must be a text of 1 to {PRINCIPAL_BYTES_MAX} bytes without control characters and `*`"));
                    }
                }
            } else if key_is(key, "name") {
                let fits = |text: &str| (1..=NAME_CHARS_MAX).contains(&text.chars().count()) && !text.contains(char::is_control);
                match as_text(value).filter(|text| fits(text)) {
                    Some(name) => order.name = Some(Arc::from(&*name)),
                    None => wrong("/name", format!("must be a text of 1 to {NAME_CHARS_MAX} characters without control characters")),
                }
            } else if key_is(key, "ttl") {
                let read = as_text(value).map_or_else(|| whole_seconds(value), |text| duration(&text));
                match read.filter(|ttl| (Duration::from_secs(1)..=TTL_MAX).contains(ttl)) {
                    Some(ttl) => order.ttl = ttl,
                    None => wrong(
                        "/ttl",
                        "must be a text with a unit such as `24h`, or a number of seconds: from one second to 366 days".into(),
                    ),
                }
            } else if key_is(key, "meta") {
                order.meta = Some(body.slice(value).detached());
                if value.len() > META_BYTES_MAX {
                    wrong("/meta", format!("must be at most {META_BYTES_MAX} bytes"));
                }
            } else {
                let shown: String = key.trim_matches('"').chars().take(100).collect();
                wrong(&format!("/{shown}"), "is not known here; there is userId, name, ttl, meta".into());
            }
        }
        if flaws.is_empty() { Ok(order) } else { Err(flaws) }
    }
}

/// A number of seconds, also where it is written with a point: `60.0` is the same number as `60`.
fn whole_seconds(number: &str) -> Option<Duration> {
    let seconds = number.parse::<f64>().ok().filter(|seconds| seconds.fract() == 0.0)?;
    Duration::try_from_secs_f64(seconds).ok()
}

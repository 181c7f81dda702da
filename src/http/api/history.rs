//! `GET /api/history`: stored events, a page at a time, or every one of them as lines.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use bytes::Bytes;
use futures_util::stream::try_unfold;
use tokio::sync::OwnedSemaphorePermit;

use crate::http::api::Api;
use crate::http::api::openapi::{BadQuery, Unavailable};
use crate::http::api::query::{FILTER, Known, Query, wrong};
use crate::http::api::shapes::{EventFilter, History, HistoryPage};
use crate::http::problem::Problem;
use crate::http::routes::json;
use crate::model::json::one_line;
use crate::model::{Code, Fault};
use crate::store::{Export, HISTORY_LIMIT_DEFAULT, HISTORY_LIMIT_MAX, HistoryQuery, Order, StoreError, check_cursor};

/// Exports at a time: each keeps the database reading.
pub(super) const EXPORTS_MAX: usize = 8;

/// Read stored events
///
/// A page at a time, or with `Accept: application/x-ndjson` every match, one event a line. Filters can be combined, and
/// `data.<path>=<value>` keeps events whose data has that value at that path: `data.sessionId=42`.
#[utoipa::path(get, path = "/api/history", tag = "log", params(EventFilter, HistoryPage),
    responses((status = 200, description = "A page, or lines.", content((History = "application/json"), (String = "application/x-ndjson"))),
        BadQuery, Unavailable))]
pub(super) async fn history(State(api): State<Arc<Api>>, headers: HeaderMap, uri: Uri) -> Result<Response<Body>, Problem> {
    let names: Vec<&str> = FILTER.into_iter().chain(["until", "order", "limit", "cursor"]).collect();
    let mut query = Query::of(&uri, &Known { names: &names, repeated: &[], data: true });
    let now = api.live.now();
    let mut filter = query.filter(now);
    filter.until = query.moment("until", now);
    let order = query.take("order", order).unwrap_or_default();
    let lines = wants_lines(&headers);
    let limit = query.number("limit", 1, if lines { i64::MAX as u64 } else { HISTORY_LIMIT_MAX as u64 });
    let cursor = query.take("cursor", |text| check_cursor(text).map(|()| text.to_owned()).map_err(|why| why.to_string()));
    query.done()?;
    // Events accepted before this query are part of the answer, if the store keeps up.
    api.live.store.settled().await;
    if lines {
        let permit = api.exports.clone().try_acquire_owned().map_err(|_| {
            Problem::from(Fault::with(Code::Unavailable, format!("{EXPORTS_MAX} exports are running; try again when one has ended")))
        })?;
        let export = api.live.store.export(&filter, order, cursor.as_deref(), limit).await.map_err(problem)?;
        return Ok(exported(api, export, permit));
    }
    let limit = limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(HISTORY_LIMIT_DEFAULT);
    let page = api.live.store.history(&HistoryQuery { filter, order, limit, cursor }).await.map_err(problem)?;
    let mut out = String::from("{\"events\":[");
    out.push_str(&page.events.join(","));
    out.push_str("],\"next\":");
    match &page.next {
        Some(next) => crate::model::json::push_string(&mut out, next),
        None => out.push_str("null"),
    }
    out.push_str(if page.truncated { ",\"truncated\":true}" } else { "}" });
    Ok(json(StatusCode::OK, out))
}

fn order(text: &str) -> Result<Order, String> {
    match text {
        "asc" => Ok(Order::Ascending),
        "desc" => Ok(Order::Descending),
        _ => Err("must be `asc` or `desc`".into()),
    }
}

fn wants_lines(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|line| line.split(',')).any(|kind| kind.split(';').next().unwrap_or("").trim() == "application/x-ndjson")
}

/// One event a line, read as fast as the client reads. If an export fails, the answer breaks off.
fn exported(api: Arc<Api>, export: Export, permit: OwnedSemaphorePermit) -> Response<Body> {
    let lines = try_unfold((api, export, permit), async |(api, mut export, permit)| {
        loop {
            if api.stop.is_cancelled() {
                return Err("the server is stopping".to_owned());
            }
            let read = export.next().await.map_err(|error| {
                tracing::warn!(%error, "an export failed");
                error.to_string()
            })?;
            let Some(events) = read else { return Ok(None) };
            if !events.is_empty() {
                let text: String = events.iter().flat_map(|event| [one_line(event), "\n".into()]).collect();
                return Ok(Some((Bytes::from(text), (api, export, permit))));
            }
        }
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// What is wrong with a query that the store refused.
pub(super) fn problem(error: StoreError) -> Problem {
    match error {
        StoreError::Limit => wrong("limit", &error.to_string()),
        StoreError::Cursor(why) => wrong("cursor", &why.to_string()),
        other => {
            tracing::warn!(error = %other, "a history query failed");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer; see /readyz")
        }
    }
}

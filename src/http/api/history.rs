//! `GET /api/history`: stored events, newest first.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, Uri};

use crate::http::api::openapi::{BadQuery, Unavailable};
use crate::http::api::shapes::History;
use crate::http::api::{Api, Parameters};
use crate::http::problem::Problem;
use crate::http::site::json;
use crate::store::{HISTORY_LIMIT_DEFAULT, HISTORY_LIMIT_MAX, HistoryQuery, StoreError};

/// Read stored events
///
/// Newest first.
#[utoipa::path(get, path = "/api/history", tag = "log",
    params(
        ("channel" = Option<String>, Query, description = "Only those of this channel."),
        ("type" = Option<String>, Query, description = "Only those of this type."),
        ("limit" = Option<u64>, Query, description = "The most events of an answer; 100 where it is not given.", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "`next` of the answer before; the other parameters must be the same."),
    ),
    responses((status = 200, description = "A page.", body = History), BadQuery, Unavailable))]
pub(super) async fn history(State(api): State<Arc<Api>>, uri: Uri) -> Result<Response<Body>, Problem> {
    let parameters = Parameters::of(&uri, &["channel", "type", "limit", "cursor"])?;
    let limit = match parameters.get("limit") {
        None => HISTORY_LIMIT_DEFAULT,
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| (1..=HISTORY_LIMIT_MAX).contains(n))
            .ok_or_else(|| Parameters::wrong("limit", &format!("must be a whole number from 1 to {HISTORY_LIMIT_MAX}")))?,
    };
    let query = HistoryQuery {
        channel: parameters.get("channel").map(Into::into),
        kind: parameters.get("type").map(Into::into),
        limit,
        cursor: parameters.get("cursor").map(Into::into),
    };
    // What was accepted before this question is part of the answer, where the store keeps up.
    api.router.store.settled().await;
    let page = api.router.store.history(&query).await.map_err(problem)?;
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

fn problem(error: StoreError) -> Problem {
    match error {
        StoreError::Limit => Parameters::wrong("limit", &error.to_string()),
        StoreError::Cursor(why) => Parameters::wrong("cursor", &why.to_string()),
        other => {
            tracing::warn!(error = %other, "a history query failed");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer; see /readyz")
        }
    }
}

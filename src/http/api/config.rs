//! The configuration that is in use, and putting another in its place: `GET /api/config`, `POST /api/reload`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::IF_MATCH;
use axum::http::{HeaderValue, Request, StatusCode, Uri};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use crate::http::api::openapi::{BadQuery, Late, NotJson, TooLarge};
use crate::http::api::publish::{BODY_BYTES_MAX, invalid};
use crate::http::api::query::{Known, Query};
use crate::http::api::{Answer, Api, ok};
use crate::http::body::read_json;
use crate::http::problem::{self, Problem};
use crate::model::Json;
use crate::model::fault::Flaw;
use crate::model::json::members;
use crate::reload::report::{Current, Refusal, Report, Why};
use crate::reload::{Asked, Status};

/// The configuration in use.
#[derive(Serialize, ToSchema)]
struct Config {
    #[serde(flatten)]
    #[schema(inline)]
    current: Current,
    /// Why the last reload since then was refused.
    #[schema(required)]
    refused: Option<Refusal>,
}

/// A reload that was refused.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described: it is written as a problem with a member more")]
struct Refused {
    #[schema(inline)]
    #[serde(flatten)]
    problem: problem::Refusal,
    /// Why, and when.
    refusal: Refusal,
}

/// Which configuration must be in use.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only described: it is read by hand")]
struct IfMatch {
    /// The generation that must be in use, in quotes, as `ETag` of `GET /api/config` has it; `*`, as without this header: any.
    #[param(rename = "If-Match", value_type = String, required = false, pattern = r#"^(\*|"[0-9]{1,18}")$"#)]
    if_match: Option<String>,
}

/// Show the configuration in use
///
/// Which generation it is, since when, from which files, and why the last reload was refused, if one was.
#[utoipa::path(get, path = "/api/config", tag = "state", responses((status = 200, description = "What is in use.", body = Config), BadQuery))]
pub(super) async fn config(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    Query::nothing(&uri)?;
    let Status { current, refused } = api.reloader.status();
    let etag = format!("\"{}\"", current.generation);
    let mut answer = ok(&Config { current, refused })?;
    if let Ok(value) = HeaderValue::from_str(&etag) {
        answer.headers_mut().insert("etag", value);
    }
    Ok(answer)
}

/// Reload the configuration
///
/// Reads the files again and replaces the configuration in use: completely, or not at all if anything is wrong. The answer comes once
/// it is done. With `dry=true` nothing changes, and the answer says what would. No body is needed; a body with a member is refused.
#[utoipa::path(post, path = "/api/reload", tag = "state",
    params(("dry" = Option<bool>, Query, description = "Only say what would happen."), IfMatch),
    responses((status = 200, description = "What is in use now, what is different, and what ended.", body = Report),
        (status = 409, description = "It was refused: why. What was in use stays in use.", body = Refused, content_type = "application/problem+json"),
        (status = 412, description = "Another generation is in use.", body = Refused, content_type = "application/problem+json"),
        BadQuery, Late, TooLarge, NotJson))]
pub(super) async fn reload(State(api): State<Arc<Api>>, request: Request<Body>) -> Answer {
    let since = Instant::now();
    let (parts, body) = request.into_parts();
    let (uri, headers) = (&parts.uri, &parts.headers);
    let body = read_json(&parts, body, BODY_BYTES_MAX).await?;
    if let Some(flaw) = body.as_ref().and_then(unheard) {
        return Err(invalid(vec![flaw]));
    }
    let mut query = Query::of(uri, &Known { names: &["dry"], repeated: &[], data: false });
    let dry = query.take("dry", |text| text.parse().map_err(|_| "must be `true` or `false`".into())).unwrap_or(false);
    query.done()?;
    let generation = headers.get(IF_MATCH).map(generation).transpose()?.flatten();
    // A task of its own: it is done in full even if whoever asked has gone.
    let reloader = api.reloader.clone();
    let done = tokio::spawn(async move { reloader.reload(Asked { dry, generation }, since).await });
    match done.await {
        Ok(Ok(report)) => ok(&report),
        Ok(Err(refusal)) => {
            let status = if refusal.why == Why::Outdated { StatusCode::PRECONDITION_FAILED } else { StatusCode::CONFLICT };
            Err(Problem::new(status, refusal.diagnostics.trim_end()).extension("refusal", &refusal))
        }
        Err(_) => {
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the reload ended with an error of the server, which the log describes"))
        }
    }
}

/// What is wrong with a body that has any content: nobody should believe that it had an effect.
fn unheard(body: &Json) -> Option<Flaw> {
    let text = body.as_str().trim_start();
    let first = members(text).next();
    if text.starts_with('{') && first.is_none() {
        return None;
    }
    let key = first.map(|(key, _)| format!("/{}", key.trim_matches('"').chars().take(100).collect::<String>()));
    let message = if key.is_some() { "unknown key; this call takes none" } else { "must be an empty object, or no body at all" };
    Some(Flaw { path: key.unwrap_or_default(), message: message.into() })
}

/// Reads `"3"`; `*` means any generation.
fn generation(value: &HeaderValue) -> Result<Option<u64>, Problem> {
    let text = value.to_str().unwrap_or_default();
    if text == "*" {
        return Ok(None);
    }
    let number = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let number = number.and_then(|text| text.parse().ok());
    let wrong = || Problem::new(StatusCode::BAD_REQUEST, "`If-Match` must be a generation in quotes, such as `\"3\"`, or `*`");
    number.map(Some).ok_or_else(wrong)
}
